//! The words: who, what, several ways to say each event, and how the lines of an answer begin.

/// People.
pub(super) const NAMES: [&str; 24] = [
    "Mia", "Tom", "Ana", "Ben", "Lea", "Max", "Zoe", "Sam", "Eva", "Leo", "Ida", "Jon", "Amy", "Dan", "Kim",
    "Lou", "Nia", "Oli", "Pia", "Ray", "Sue", "Tim", "Uma", "Vic",
];

/// Things that can be counted, and what they come packed in.
pub(super) const ITEMS: [(&str, &str); 20] = [
    ("apples", "bags"),
    ("pears", "bags"),
    ("cards", "packs"),
    ("stamps", "sheets"),
    ("coins", "rolls"),
    ("books", "boxes"),
    ("pens", "packs"),
    ("eggs", "trays"),
    ("beads", "jars"),
    ("shells", "buckets"),
    ("nuts", "bags"),
    ("cookies", "tins"),
    ("marbles", "jars"),
    ("stickers", "sheets"),
    ("flowers", "bunches"),
    ("bricks", "piles"),
    ("tickets", "rolls"),
    ("candles", "boxes"),
    ("lemons", "nets"),
    ("buttons", "boxes"),
];

/// How a story begins; `{n}` is what there is.
pub(super) const START: [&str; 6] = [
    "{name} has {n} {items}.",
    "{name} starts with {n} {items}.",
    "There are {n} {items} on {name}'s table.",
    "At first {name} has {n} {items}.",
    "{name} counts {n} {items}.",
    "In the morning {name} has {n} {items}.",
];

/// `n` more.
pub(super) const GAIN: [&str; 6] = [
    "{name} buys {n} more.",
    "{other} gives {name} {n} more.",
    "Then {name} finds {n} more {items}.",
    "{name} gets {n} {items} from {other}.",
    "Later {n} more {items} arrive.",
    "A shop sends {n} {items} to {name}.",
];

/// `n` fewer.
pub(super) const LOSE: [&str; 6] = [
    "{name} gives {n} of them to {other}.",
    "{name} sells {n} {items}.",
    "Then {n} {items} get lost.",
    "{other} takes {n} of the {items}.",
    "{name} uses {n} of them.",
    "{name} throws {n} {items} away.",
];

/// `a` packs of `b` more.
pub(super) const PACKS_IN: [&str; 5] = [
    "{name} buys {a} {packs} with {b} {items} each.",
    "{other} brings {a} {packs} of {b} {items}.",
    "Then {a} {packs} arrive, each with {b} {items}.",
    "{name} finds {a} {packs} that hold {b} {items} each.",
    "A shop sends {a} {packs} with {b} {items} in each.",
];

/// `a` packs of `b` fewer.
pub(super) const PACKS_OUT: [&str; 5] = [
    "{name} fills {a} {packs} with {b} {items} each and sells them.",
    "{other} takes {a} {packs} of {b} {items}.",
    "{name} gives away {a} {packs}, each with {b} {items}.",
    "Then {a} {packs} of {b} {items} get lost.",
    "{name} sends {a} {packs} with {b} {items} each to {other}.",
];

/// `n` times as many.
pub(super) const TIMES: [&str; 4] = [
    "By night there are {n} times as many.",
    "{name} then gets so many that there are {n} times as many {items}.",
    "A week later {name} has {n} times as many.",
    "With help from {other} there are now {n} times as many {items}.",
];

/// One of `n` equal parts is left.
pub(super) const SHARE: [&str; 4] = [
    "{name} shares them equally among {n} people and keeps one share.",
    "They are split into {n} equal piles, and {name} keeps one pile.",
    "{name} puts them into {n} equal groups and keeps only one group.",
    "{n} people, {name} among them, divide them equally, and {name} keeps one part.",
];

/// What is asked.
pub(super) const ASK: [&str; 4] = [
    "How many {items} does {name} have now?",
    "How many {items} are there in the end?",
    "How many {items} does {name} have left?",
    "What is the number of {items} now?",
];

/// What may stand before an equation, the usual first. None begins like a number or like a whole other one.
pub(super) const LEADS: [&str; 16] = [
    "",
    "So ",
    "Then ",
    "Now ",
    "We get ",
    "That gives ",
    "Thus ",
    "Hence ",
    "This makes ",
    "We have ",
    "Therefore ",
    "Work out ",
    "Calculate ",
    "Let us see: ",
    "It follows that ",
    "On paper: ",
];
