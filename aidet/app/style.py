"""Colours and style sheet of the page, light and dark. Every pair of text and ground has a contrast of 4.5 or more."""

# Per mode: the ground of a card, and what is written on it. ``soft`` is text of less weight.
LIGHT = {
    "ground": "#ffffff", "text": "#1e293b", "soft": "#475569", "line": "#cbd5e1",
    "real": "#0b57b8", "generated": "#a63f00", "unsure": "#6b5a00", "error": "#b00020",
}  # fmt: skip
DARK = {
    "ground": "#1e293b", "text": "#f1f5f9", "soft": "#cbd5e1", "line": "#475569",
    "real": "#7ab8ff", "generated": "#ffa366", "unsure": "#e6cf5c", "error": "#ff9aa2",
}  # fmt: skip
PLAIN = "#475569"  # ground of a badge that says neither; the text on badges is white in light mode, dark in dark mode
PAGE = {"light": "#f8fafc", "dark": "#0f172a"}  # behind the cards

_RULES = """
.aidet-card {border: 1px solid var(--ai-line); border-left: 8px solid var(--own, var(--ai-line)); border-radius: 10px;
  padding: 12px 16px; background: var(--ai-ground); color: var(--ai-text)}
.aidet-card h2 {margin: 0 0 2px; font-size: 1.9rem; line-height: 1.2; color: var(--own)}
.aidet-card p {margin: 4px 0; color: var(--ai-text)}
.aidet-file, .aidet-card .aidet-file {overflow-wrap: anywhere; color: var(--ai-soft); font-size: .9rem}
.aidet-real {--own: var(--ai-real)} .aidet-generated {--own: var(--ai-generated)}
.aidet-unsure {--own: var(--ai-unsure)} .aidet-error {--own: var(--ai-error)}
.aidet-bar {position: relative; height: 22px; border-radius: 6px; margin: 8px 0 4px; overflow: hidden;
  background: linear-gradient(90deg, #146edc33, #146edc18 40%, #c24e0018 60%, #c24e0044)}
.aidet-zone {position: absolute; top: 0; bottom: 0; background: repeating-linear-gradient(45deg, #b8960066 0 6px,
  #b8960022 6px 12px)}
.aidet-tick {position: absolute; top: 0; bottom: 0; width: 2px; margin-left: -1px; background: var(--ai-text);
  opacity: .6}
.aidet-mark {position: absolute; top: 3px; width: 14px; height: 16px; margin-left: -7px; border-radius: 5px;
  border: 2px solid var(--ai-ground); background: var(--own)}
.aidet-ends {display: flex; justify-content: space-between; font-size: .8rem; color: var(--ai-soft)}
.aidet-card .aidet-note, .aidet-note {font-size: .85rem; color: var(--ai-soft); border-top: 1px solid var(--ai-line);
  padding-top: 6px; margin-top: 8px !important}
.aidet-warn {font-weight: 600}
.aidet-wait {color: var(--ai-soft) !important}
.aidet-rows {display: grid; grid-template-columns: fit-content(45%) 1fr 3.2em; gap: 6px 12px;
  align-items: center; overflow-wrap: anywhere}
.aidet-line {position: relative; height: 12px; border-radius: 4px; background: var(--ai-line)}
.aidet-line i {position: absolute; left: 0; top: 0; bottom: 0; border-radius: 4px; background: var(--own)}
.aidet-dot {position: absolute; top: 1px; width: 10px; height: 10px; margin-left: -5px; border-radius: 50%;
  border: 1px solid var(--ai-ground); background: var(--own)}
.aidet-badge {border-radius: 6px; padding: 1px 7px; color: var(--ai-ground); font-size: .85rem; white-space: nowrap;
  background: var(--own, var(--ai-soft))}
.aidet-map {margin: 0; border: 1px solid var(--ai-line); border-radius: 10px; background: var(--ai-ground);
  padding: 8px; color: var(--ai-text)}
.aidet-map img {display: block; width: 100%; max-height: 320px; object-fit: contain; border-radius: 6px}
.aidet-map figcaption {font-size: .85rem; color: var(--ai-soft); margin-top: 6px}
.aidet-map p {color: var(--ai-soft); margin: 2px 0}
.aidet-blank {display: flex; align-items: center; justify-content: center; min-height: 260px; text-align: center;
  color: var(--ai-soft)}
.aidet-scale {height: 12px; border-radius: 4px; margin: 2px 0;
  background: linear-gradient(90deg, #146edc, #9a9a9a 50%, #e66101)}
.aidet-likely {height: 12px; border-radius: 4px; margin: 6px 0 2px; border: 1px solid var(--ai-line);
  background: linear-gradient(90deg, #e6610100, #e66101)}
.aidet-stack {position: relative}
.aidet-map .aidet-layer {position: absolute; inset: 0; height: 100%}
.aidet-map figcaption b {color: var(--ai-text); font-size: 1rem}
.aidet-map label {display: flex; align-items: center; gap: 10px; margin: 4px 0}
.aidet-map input[type=range] {flex: 1; min-width: 0; accent-color: #c24e00}
.aidet-scroll {overflow-x: auto; border: 1px solid var(--ai-line); border-radius: 8px; max-height: 480px;
  background: var(--ai-ground)}
.aidet-scroll:focus-visible {outline: 3px solid var(--ai-real)}
.aidet-table {width: 100%; border-collapse: collapse; color: var(--ai-text); background: var(--ai-ground)}
.aidet-table, .aidet-table tr {border: 0 !important}
.aidet-table th {text-align: left; white-space: nowrap; position: sticky; top: 0; background: var(--ai-ground);
  color: var(--ai-soft); z-index: 1}
.aidet-table td, .aidet-table th {padding: 6px 10px !important; vertical-align: middle; border: 0 !important;
  border-bottom: 1px solid var(--ai-line) !important}
.aidet-table .aidet-name {overflow-wrap: anywhere; min-width: 9rem}
.aidet-table .aidet-number {white-space: nowrap; font-variant-numeric: tabular-nums}
.aidet-table .aidet-once {white-space: nowrap}
.aidet-table img {display: block; width: 56px; height: 56px; object-fit: cover; border-radius: 6px}
.aidet-facts td {vertical-align: top}
.aidet-link {display: inline-block; padding: 6px 14px; border-radius: 8px; text-decoration: none !important;
  border: 1px solid var(--ai-line); background: var(--ai-ground); color: var(--ai-text) !important}
.aidet-pair {display: flex; flex-wrap: wrap; gap: 12px; margin-top: 8px}
#examples {margin-bottom: -8px} #examples p {font-weight: 600}
#example-row {display: grid; grid-template-columns: repeat(3, 1fr); gap: 8px}
.aidet-example {display: flex; align-self: stretch; height: auto; flex-direction: column; gap: 4px;
  padding: 4px 4px 6px; min-width: 0 !important; font-size: .8rem; font-weight: 400; line-height: 1.25;
  white-space: normal; justify-content: flex-start; background: var(--ai-ground); color: var(--ai-text);
  border: 1px solid var(--ai-line)}
.aidet-example img {width: 100%; height: 62px; object-fit: cover; border-radius: 6px; margin: 0}
:is(#verdict, #heat, #where, #traces, #votes, #stability, #metadata, #table, #download, #history, #history-download)
  .html-container {padding: 0}
#verdict p, #votes p, #stability p, #traces p, #metadata p {margin: 4px 0}
/* Gradio measures hidden copies of the tabs to find those that fit: they need the same padding. */
@media (max-width: 480px) {.tab-container button {padding-left: 9px; padding-right: 9px}}
@media (max-width: 1000px) {.aidet-map img {max-height: none}}
footer {display: none !important}
"""


def _variables(colours):
    return " ".join(f"--ai-{name}: {value};" for name, value in colours.items())


CSS = f":root {{{_variables(LIGHT)}}}\n.dark {{{_variables(DARK)} --color-accent: {DARK['real']};}}\n{_RULES}"
# What Gradio's theme needs so that its own parts have enough contrast, too; ``_dark`` is for dark mode.
THEME = {
    "color_accent": "*primary_700",
    "block_label_text_color": "*primary_900",
    "block_label_text_color_dark": "*primary_100",
    "block_title_text_color": "*primary_900",
    "block_title_text_color_dark": "*primary_100",
    "body_text_color_subdued": "*neutral_600",
    "body_text_color_subdued_dark": "*neutral_300",
    "block_label_background_fill_dark": "*primary_900",
    "button_primary_background_fill": "*primary_700",
    "button_primary_background_fill_hover": "*primary_800",
    "button_primary_background_fill_dark": "*primary_700",
    "button_primary_background_fill_hover_dark": "*primary_800",
    "checkbox_label_background_fill_selected": "*primary_700",
    "checkbox_label_background_fill_selected_dark": "*primary_700",
    "link_text_color": "*primary_700",
    "link_text_color_dark": "*primary_200",
    "background_fill_primary": LIGHT["ground"],
    "body_background_fill": PAGE["light"],
    "body_background_fill_dark": PAGE["dark"],
}
