"""The 100 fine classes of CIFAR-100 and the 20 superclasses they belong to (Krizhevsky 2009, table on the data's page).

The CIFAKE seed transfers a detector to CIFAR-100, whose images are all real, and lists its recall for both levels.
"""

from typing import Dict, List, Optional

from ..errors import UserError

SUPERCLASSES = {
    "aquatic_mammals": "beaver dolphin otter seal whale",
    "fish": "aquarium_fish flatfish ray shark trout",
    "flowers": "orchid poppy rose sunflower tulip",
    "food_containers": "bottle bowl can cup plate",
    "fruit_and_vegetables": "apple mushroom orange pear sweet_pepper",
    "household_electrical_devices": "clock keyboard lamp telephone television",
    "household_furniture": "bed chair couch table wardrobe",
    "insects": "bee beetle butterfly caterpillar cockroach",
    "large_carnivores": "bear leopard lion tiger wolf",
    "large_man-made_outdoor_things": "bridge castle house road skyscraper",
    "large_natural_outdoor_scenes": "cloud forest mountain plain sea",
    "large_omnivores_and_herbivores": "camel cattle chimpanzee elephant kangaroo",
    "medium_mammals": "fox porcupine possum raccoon skunk",
    "non-insect_invertebrates": "crab lobster snail spider worm",
    "people": "baby boy girl man woman",
    "reptiles": "crocodile dinosaur lizard snake turtle",
    "small_mammals": "hamster mouse rabbit shrew squirrel",
    "trees": "maple_tree oak_tree palm_tree pine_tree willow_tree",
    "vehicles_1": "bicycle bus motorcycle pickup_truck train",
    "vehicles_2": "lawn_mower rocket streetcar tank tractor",
}
SUPERCLASS = {fine: name for name, words in SUPERCLASSES.items() for fine in words.split()}
FINE = tuple(sorted(SUPERCLASS))  # the data set numbers its classes 0 to 99 alphabetically
COLUMNS = ("fine", "superclass")
# Columns that may hold the fine class; "generator" is the name of a folder below real/ or fake/.
SOURCES = ("fine_label", "fine_class", "class", "category", "generator")


def fine(text: object) -> Optional[str]:
    """The fine class that a cell names, as a word or a number 0 to 99; None if it names none."""
    word = str(text).strip().lower().replace(" ", "_").replace("-", "_")
    if word.isdigit() and int(word) < len(FINE):
        return FINE[int(word)]
    return word if word in SUPERCLASS else None


def column(columns: Dict[str, List[str]], name: str, source: str = "the labels") -> List[str]:
    """The ``fine`` class or ``superclass`` of every row.

    Parameters
    ----------
    columns : dict of str to list of str
        Columns of the labels; the first of :data:`SOURCES` (or ``fine`` itself) that names a class in every row is
        taken.
    name : {"fine", "superclass"}
    source : str
        For the message.

    Returns
    -------
    list of str

    Raises
    ------
    UserError
        No such column; the message lists the first unknown cells of the closest column.
    """
    tried = {}
    for key in ("fine", *SOURCES):
        if key in columns:
            found = [fine(v) for v in columns[key]]
            known = [f for f in found if f is not None]
            if len(known) == len(found):
                return known if name == "fine" else [SUPERCLASS[f] for f in known]
            tried[key] = [v for v, f in zip(columns[key], found) if f is None]
    if not tried:
        raise UserError(f"{source}: --by {name} needs CIFAR-100's classes in one of: fine, {', '.join(SOURCES)}")
    key, wrong = min(tried.items(), key=lambda item: len(item[1]))
    shown = ", ".join(map(repr, dict.fromkeys(wrong)))[:200]
    raise UserError(f"{source}: --by {name}: {len(wrong)} rows of column {key!r} name no class of CIFAR-100: {shown}")
