"""Made-up arithmetic word problems, each with a right and a wrong worked answer: the workload where no file is given.

The two answers are told in different words, as two samples of one policy are, so that they share nothing but their prompt.
"""

import random
from typing import NamedTuple

NAMES = "Ada Ben Chloe David Elena Farid Grace Hugo Ines Jonas Kira Liam Maya Noah Olga Priya".split()
THINGS = "apples marbles stamps pencils cookies shells buttons postcards oranges stickers".split()
PLACES = ["At the market", "In the school yard", "At a shop near the station", "On the way home", "At the village fair"]


class Event(NamedTuple):
    told: str
    amount: str  # as an answer writes it: a number, or the product that gives it
    change: int


def events(rng: random.Random, thing: str) -> list[Event]:
    boxes, each, gift, found, lost = (rng.randint(*span) for span in ((3, 9), (6, 14), (4, 15), (12, 48), (3, 9)))
    return rng.sample(
        [
            Event(f"buys {boxes} boxes with {each} {thing} in each", f"{boxes} * {each} = {boxes * each}", boxes * each),
            Event(f"gives {gift} {thing} to a friend", f"{gift}", -gift),
            Event(f"is given another {found} {thing}", f"{found}", found),
            Event(f"loses {lost} {thing}", f"{lost}", -lost),
        ],
        k=4,
    )


def problem(rng: random.Random) -> dict[str, str]:
    """A row as preference data has it: `instruction`, `chosen`, `rejected`."""
    name, thing, first = rng.choice(NAMES), rng.choice(THINGS), rng.randint(30, 90)
    story = events(rng, thing)
    told = " ".join(f"{rng.choice(PLACES)}, {name} {event.told}." for event in story)
    slip = (rng.randrange(len(story)), rng.choice([-10, -2, -1, 1, 2, 10]))
    return {
        "instruction": f"{name} has {first} {thing}. {told} How many {thing} does {name} have in the end?",
        "chosen": right(name, thing, first, story),
        "rejected": wrong(name, thing, first, story, *slip),
    }


def right(name: str, thing: str, have: int, story: list[Event]) -> str:
    lines = [f"{name} starts with {have} {thing}."]
    for event in story:
        sign, after = "+" if event.change > 0 else "-", have + event.change
        lines.append(f"{name} {event.told}. That is {event.amount}, so now it is {have} {sign} {abs(event.change)} = {after}.")
        have = after
    return "\n".join([*lines, f"#### {have}"])


def wrong(name: str, thing: str, have: int, story: list[Event], slip_at: int, slip: int) -> str:
    """One sum is off by `slip`, and the answer goes on from there."""
    lines = [f"Let us count the {thing} step by step, from {have}."]
    for number, event in enumerate(story):
        verb, after = "add" if event.change > 0 else "take away", have + event.change + slip * (number == slip_at)
        lines.append(f"{number + 1}. When {name} {event.told}, we {verb} {event.amount}. From {have} we get to {after}.")
        have = after
    return "\n".join([*lines, f"#### {have}"])


def problems(count: int, seed: int) -> list[dict[str, str]]:
    rng = random.Random(seed)
    return [problem(rng) for _ in range(count)]
