"""Writes the documents of the demo's tasks, as a command (`python tests/demo_texts.py`).

Every text is ours, made here from short lists and a fixed random seed, so the files can be made
again to the byte and may be published. Right answers are spread evenly over the choices, and every
wrong choice is the right one of another document, so that neither a favourite letter nor a liking
for short sentences scores above chance.
"""

import random
from collections.abc import Callable, Iterator
from typing import TypedDict

from evalkit.base import canon
from evalkit.inputs.models.builtin.demo.model import TASKS

DATA = TASKS / "data"
Document = dict[str, object]

DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
COUNTS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
NAMES = ("Mara", "Tobin", "Ilse", "Jonah", "Petra", "Samir", "Wanda", "Hugo")
FRUIT = ("apple", "pear", "plum", "fig", "melon", "cherry")
TOOLS = ("hammer", "saw", "chisel", "spanner", "drill", "file")
KINDS = {
    "fruit": (*FRUIT, "peach", "lemon"),
    "tool": (*TOOLS, "rasp", "clamp"),
    "bird": ("robin", "heron", "swift", "owl", "finch", "wren", "goose", "rook"),
    "boat": ("canoe", "ferry", "barge", "kayak", "yacht", "dinghy", "raft", "punt"),
    "drink": ("tea", "cocoa", "cider", "milk", "coffee", "juice", "water", "soda"),
    "musical instrument": ("flute", "harp", "drum", "cello", "oboe", "lute", "horn", "viola"),
    "piece of furniture": ("chair", "shelf", "bench", "desk", "stool", "cradle", "sofa", "bureau"),
}
SCENES = (
    ("{} fills the kettle and sets it on the stove.", "The water boils and the kettle whistles."),
    ("{} drops a letter into the red box.", "The postman empties the box and sorts the mail."),
    ("{} plants a row of beans along the fence.", "Green shoots push up through the soil."),
    ("{} leaves the ice cream on the sunny table.", "It melts and drips onto the floor."),
    ("{} winds the old clock on the wall.", "It starts to tick and strikes the hour."),
    ("{} throws a stone into the still pond.", "Rings of small waves spread to the bank."),
    ("{} kneads the dough and covers the bowl.", "The bread has risen to twice its size."),
    ("{} strikes a match in the dark cellar.", "A small flame lights up the shelves."),
    ("{} forgets the umbrella on a rainy day.", "Wet clothes hang over the radiator."),
    ("{} opens the cage with the pigeons.", "The birds fly up and circle over the roof."),
    ("{} pumps up the flat tyre.", "The bicycle rolls easily down the lane again."),
    ("{} ties the boat to the jetty.", "It rocks on its rope but does not drift away."),
    ("{} turns the key and closes the shop.", "The street is quiet and the window is dark."),
    ("{} pours sand into the top of the glass.", "It trickles through and forms a heap below."),
    ("{} blows out the candles on the cake.", "The guests clap and ask for a slice."),
    ("{} shakes the branch of the walnut tree.", "Nuts rattle down into the grass."),
    ("{} rubs the lamp with a soft cloth.", "The brass shines like new."),
    ("{} calls the dog from the far field.", "It comes running with its tongue out."),
    ("{} casts the line from the bridge.", "The float dips and a trout is on the hook."),
    ("{} pulls the rope in the church tower.", "The bell rings across the village."),
    ("{} stirs blue paint into the yellow.", "The whole bucket has turned green."),
    ("{} builds a tower from cards by the fan.", "It falls over and the cards scatter."),
    ("{} reads the last page of the novel.", "The book goes back to its place on the shelf."),
    ("{} puts a coin into the parking meter.", "The dial shows that an hour has been paid."),
    ("{} sweeps the snow from the path.", "The guests reach the door with dry shoes."),
    ("{} salts the soup twice by mistake.", "Nobody finishes the plate and all drink water."),
    ("{} lets go of the balloon.", "It rises above the houses until it is a dot."),
    ("{} sharpens the blunt kitchen knife.", "It slices the tomato without a push."),
)  # fmt: skip
SCENE_SEEDS = (1, 2)  # each scene is told twice, with other names and other wrong endings


class Question(TypedDict):
    """A question with its right answer and three wrong ones."""

    question: str
    right: str
    wrong: list[str]


def _letters(
    source: random.Random, count: int, ask: Callable[[random.Random], Question]
) -> Iterator[Document]:
    """Yield `count` questions with four choices; the right one is A, B, C and D equally often."""
    turns = [index % 4 for index in range(count)]
    source.shuffle(turns)
    seen: set[str] = set()
    for answer in turns:
        made = ask(source)
        while made["question"] in seen:
            made = ask(source)
        seen.add(made["question"])
        choices = made["wrong"]
        choices.insert(answer, made["right"])
        yield {"question": made["question"], "choices": choices, "answer": answer}


def _sum(source: random.Random) -> Question:
    first, second = source.randint(2, 40), source.randint(2, 40)
    right = first + second
    wrong = source.sample([right + d for d in range(-4, 5) if d], 3)
    question = f"What is {first} plus {second}?"
    return {"question": question, "right": str(right), "wrong": [str(n) for n in wrong]}


def _day(source: random.Random) -> Question:
    start, step = source.randrange(7), source.randint(1, 6)
    later = source.random() < 0.5
    right = DAYS[(start + (step if later else -step)) % 7]
    wrong = source.sample([day for day in DAYS if day != right], 3)
    unit = "day" if step == 1 else "days"
    direction = "after" if later else "before"
    question = f"Which day is {COUNTS[step]} {unit} {direction} {DAYS[start]}?"
    return {"question": question, "right": right, "wrong": wrong}


def endings() -> Iterator[Document]:
    """Each scene with its ending among three endings of other scenes."""
    for seed in SCENE_SEEDS:
        source = random.Random(seed)
        count = len(SCENES)
        turns = [index % 4 for index in range(count)]
        source.shuffle(turns)
        shifts = source.sample(range(1, count), 3)  # so that each ending is wrong equally often
        for index, (scene, right) in enumerate(SCENES):
            choices = [SCENES[(index + shift) % count][1] for shift in shifts]
            choices.insert(turns[index], right)
            name = NAMES[(index + seed) % len(NAMES)]
            query = f"{scene.format(name)} A little later:"
            yield {"query": query, "choices": choices, "label": turns[index]}


def qa() -> Iterator[Document]:
    """Which of these is a fruit? With three, four and five choices in turn."""
    source = random.Random(3)
    for index in range(42):
        size = 3 + index % 3
        kinds = source.sample(sorted(KINDS), size)
        items = [source.choice(KINDS[kind]) for kind in kinds]
        answer = index // 3 % size
        article = "an" if kinds[answer][0] in "aeiou" else "a"
        yield {
            "question": f"Which of these is {article} {kinds[answer]}?",
            "choices": {"text": items, "label": list("ABCDE"[:size])},
            "answerKey": "ABCDE"[answer],
        }


def counting() -> Iterator[Document]:
    """How many fruits among fruits and tools."""
    source = random.Random(4)
    for _ in range(24):
        fruit, tools = source.sample(FRUIT, 3), source.sample(TOOLS, 2)
        counts = [source.randint(2, 6) for _ in range(5)]
        things = list(zip(counts, (*fruit, *tools), strict=True))
        total = sum(counts[:3])
        source.shuffle(things)
        listed = [f"{COUNTS[n]} {_plural(name)}" for n, name in things]
        question = f"I have {', '.join(listed[:-1])} and {listed[-1]}. How many fruits do I have?"
        yield {"input": question, "target": str(total)}


def _plural(name: str) -> str:
    if name.endswith("ch"):
        return name + "es"
    return name[:-1] + "ies" if name.endswith("ry") else name + "s"


def calendar() -> Iterator[Document]:
    """Which weekday it is after two steps."""
    source = random.Random(5)
    for _ in range(24):
        start, first, second = source.randrange(7), source.randint(2, 6), source.randint(2, 5)
        question = (
            f"Today is {DAYS[start]}. {source.choice(NAMES)} leaves {COUNTS[first]} days from now"
            f" and comes back {COUNTS[second]} days after that. On which day?"
        )
        yield {"input": question, "target": DAYS[(start + first + second) % 7]}


def files() -> dict[str, list[Document]]:
    """Every data file's documents by file name."""
    return {
        "letters_sums.jsonl": list(_letters(random.Random(6), 40, _sum)),
        "letters_sums_dev.jsonl": list(_letters(random.Random(7), 4, _sum)),
        "letters_days.jsonl": list(_letters(random.Random(8), 24, _day)),
        "letters_days_dev.jsonl": list(_letters(random.Random(9), 4, _day)),
        "endings.jsonl": list(endings()),
        "qa.jsonl": list(qa()),
        "cot_counting.jsonl": list(counting()),
        "cot_calendar.jsonl": list(calendar()),
    }


def lines(documents: list[Document]) -> str:
    """A data file's text: one canonical JSON object a line."""
    return "".join(canon.dumps(document) + "\n" for document in documents)


def main() -> None:
    """Write every data file."""
    for name, documents in files().items():
        canon.write_atomic(DATA / name, lines(documents))


if __name__ == "__main__":
    main()
