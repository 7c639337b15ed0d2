"""The 100 fine classes of CIFAR-100 and the 20 superclasses they belong to (Krizhevsky 2009, table on the data's page).

The CIFAKE seed transfers a detector to CIFAR-100, whose images are all real, and lists its recall for both levels.
"""

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
FINE = tuple(sorted(SUPERCLASS))  # the data's numbers 0 to 99 follow the alphabet
COLUMNS = ("fine", "superclass")
# Where labels keep the fine class; "generator" is what a folder below real/ or fake/ is called.
SOURCES = ("fine_label", "fine_class", "class", "category", "generator")


def fine(text):
    """The fine class that a cell names, by its word or its number 0 to 99; None where it names none."""
    word = str(text).strip().lower().replace(" ", "_").replace("-", "_")
    if word.isdigit() and int(word) < len(FINE):
        return FINE[int(word)]
    return word if word in SUPERCLASS else None


def column(columns, name, source="the labels"):
    """``fine`` or ``superclass`` of every row.

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
        No column does; the first offenders of the best one are named.
    """
    tried = {}
    for key in ("fine", *SOURCES):
        if key in columns:
            found = [fine(v) for v in columns[key]]
            if None not in found:
                return found if name == "fine" else [SUPERCLASS[f] for f in found]
            tried[key] = [v for v, f in zip(columns[key], found) if f is None]
    if not tried:
        raise UserError(f"{source}: --by {name} needs CIFAR-100's classes in one of: fine, {', '.join(SOURCES)}")
    key, wrong = min(tried.items(), key=lambda item: len(item[1]))
    shown = ", ".join(map(repr, dict.fromkeys(wrong)))[:200]
    raise UserError(f"{source}: --by {name}: {len(wrong)} rows of column {key!r} name no class of CIFAR-100: {shown}")
