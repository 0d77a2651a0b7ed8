"""The words of the simulated marketplace: what its items are, and how their text tells it.

Every latent attribute of an item (category, product, style, occasion, price tier) is named in its title or description,
so that a text encoder, or a judge who reads, can find out what the simulated users care about.
"""

# Category path -> products. Products of one category are alternatives to each other.
CATEGORIES: dict[str, tuple[str, ...]] = {
    "Kitchen,Cookware": ("frying pan", "casserole pot", "chef knife", "cutting board", "mixing bowl", "kettle"),
    "Kitchen,Coffee & Tea": (
        "espresso maker",
        "coffee grinder",
        "teapot",
        "travel mug",
        "milk frother",
        "pour-over set",
    ),
    "Home,Lighting": ("desk lamp", "floor lamp", "string lights", "night light", "pendant lamp", "candle lantern"),
    "Home,Bedding": ("duvet cover", "pillow", "wool blanket", "mattress topper", "linen sheet set", "bed canopy"),
    "Outdoors,Camping": ("two-person tent", "sleeping bag", "camp stove", "hammock", "folding chair", "headlamp"),
    "Outdoors,Garden": (
        "watering can",
        "pruning shears",
        "raised planter",
        "bird feeder",
        "garden trowel",
        "rain barrel",
    ),
    "Sports,Fitness": ("yoga mat", "resistance bands", "kettlebell", "foam roller", "jump rope", "pull-up bar"),
    "Sports,Cycling": ("bike helmet", "pannier bag", "bike light", "cycling gloves", "floor pump", "handlebar grips"),
    "Office,Stationery": (
        "notebook",
        "fountain pen",
        "desk organiser",
        "weekly planner",
        "sticky notes",
        "letter tray",
    ),
    "Electronics,Audio": ("headphones", "portable speaker", "record player", "earbuds", "desk radio", "soundbar"),
    "Toys,Games": ("board game", "wooden puzzle", "building blocks", "card game", "marble run", "kite"),
    "Clothing,Accessories": ("backpack", "wool scarf", "leather belt", "sun hat", "rain poncho", "canvas tote"),
}

# Category -> the category that people look at next, in the order of CATEGORIES: what makes sequences worth learning.
NEXT_CATEGORY: tuple[int, ...] = (1, 8, 3, 2, 11, 4, 7, 6, 9, 10, 0, 5)

# Style -> adjectives of the title, and the sentence of the description.
STYLES: dict[str, tuple[tuple[str, ...], str]] = {
    "minimalist": (("Minimalist", "Plain", "Clean-Line"), "Clean lines and nothing superfluous."),
    "rustic": (("Rustic", "Farmhouse", "Hand-Hewn"), "A rustic look with natural grain and honest marks of the hand."),
    "vintage": (("Vintage", "Retro", "Old-School"), "Inspired by the nineteen-sixties, down to the vintage details."),
    "playful": (("Playful", "Colourful", "Cheerful"), "Bright colours and playful patterns that make people smile."),
    "high-tech": (("Smart", "High-Tech", "Connected"), "High-tech inside: sensors, an app and quick charging."),
    "rugged": (("Rugged", "Heavy-Duty", "All-Weather"), "Rugged and reinforced for rain, mud and rough handling."),
    "elegant": (("Elegant", "Refined", "Polished"), "Elegant proportions with a refined, polished finish."),
    "eco-friendly": (
        ("Recycled", "Organic", "Eco-Friendly"),
        "Made of recycled and organic materials, without plastic.",
    ),
}

# Occasion -> phrase of the title, and the sentence of the description.
OCCASIONS: dict[str, tuple[str, str]] = {
    "breakfast": ("for Slow Breakfasts", "Made for the breakfast table and a quiet start into the morning."),
    "commuting": ("for the Daily Commute", "Made for the commute: on the train, on the bike, on the way."),
    "home office": ("for the Home Office", "Made for working hours at the desk of a home office."),
    "family time": ("for Families", "Made for family afternoons with children of all ages."),
    "workout": ("for Workouts", "Made for a workout after a long day of sitting."),
    "dinner party": ("for Dinner Parties", "Made for evenings with guests and a long dinner."),
    "winding down": ("for Winding Down", "Made for winding down late at night, calm and quiet."),
    "weekend trips": ("for Weekend Trips", "Made for weekend trips with a full car and no plan."),
}

# Part of the day (`context.DAYPARTS`) -> how much each occasion suits it, in the order of OCCASIONS.
OCCASION_FITS: dict[str, tuple[float, ...]] = {
    "night": (0.1, 0.0, 0.1, 0.0, 0.0, 0.2, 1.0, 0.3),
    "morning": (1.0, 0.9, 0.5, 0.2, 0.4, 0.0, 0.0, 0.2),
    "midday": (0.2, 0.3, 1.0, 0.4, 0.3, 0.1, 0.0, 0.3),
    "afternoon": (0.0, 0.5, 0.8, 1.0, 0.6, 0.3, 0.1, 0.5),
    "evening": (0.0, 0.2, 0.1, 0.5, 0.6, 1.0, 0.9, 0.4),
}
WEEKEND_TRIPS_AT_WEEKENDS = 0.6
"""Added to the fit of the occasion "weekend trips" on Saturdays and Sundays, and taken from the working occasions."""

PLACEMENTS: tuple[str, ...] = ("home", "search", "product_page", "checkout")

# Price tier -> brands, adjective of the title, sentence of the description.
TIERS: dict[str, tuple[tuple[str, ...], str, str]] = {
    "budget": (("Everly", "Basiq", "Nordbay", "Tuck & Co"), "Value", "Good value on a small budget."),
    "mid-range": (("Halden", "Marlowe", "Oakline", "Fernway"), "", "A solid choice at a fair price."),
    "premium": (
        ("Aurelle", "Kestrel & Sons", "Verano Atelier", "Ostra"),
        "Premium",
        "A premium piece that is built to last.",
    ),
}

COLOURS: tuple[str, ...] = (
    "Slate",
    "Sand",
    "Forest",
    "Navy",
    "Terracotta",
    "Ivory",
    "Charcoal",
    "Mustard",
    "Sage",
    "Plum",
)

# Manner of shopping -> how it is told in the profile, and the mean weights of the four aspects.
MANNERS: dict[str, tuple[str, tuple[float, float, float, float]]] = {
    "loyal": ("keeps to favourite kinds of things", (0.60, 0.20, 0.05, 0.15)),
    "follower": ("follows the interest of the moment", (0.20, 0.60, 0.05, 0.15)),
    "explorer": ("likes to try new kinds of things", (0.25, 0.15, 0.50, 0.10)),
    "situational": ("buys what the hour asks for", (0.25, 0.15, 0.05, 0.55)),
}
AGE_BANDS: tuple[str, ...] = ("18-24", "25-34", "35-49", "50-64", "65+")
REGIONS: tuple[str, ...] = ("north", "south", "east", "west", "capital")
