"""Writes the demo's data: expense notes as people jot them down, each with the record an accountant would file.

Everything is drawn by a seeded generator from the word lists below, so running this file again writes the same bytes.
Held-out notes use payees, amounts and dates that no training note has, and a third of them a phrasing that training
never shows.

    python examples/demo/make_data.py
"""

from __future__ import annotations

import datetime
import difflib
import json
import math
import random
from pathlib import Path

Row = dict[str, list[dict[str, str]]]

HERE = Path(__file__).parent
TRAIN_ROWS, HELD_OUT_ROWS = 440, 60
MOST_ALIKE = 0.85
"Held-out notes more alike than this to a training note (difflib's ratio of their words) are drawn again."

SYSTEM = "File this expense as a JSON record: payee, amount, currency, date, category."

TRADES: dict[str, dict[str, list[str]]] = {
    "travel": {
        "Taxi": ["a ride to the airport", "the way back from the station", "a late ride home"],
        "Car Hire": ["a van for the trade fair", "a car for the site visit", "two days with a hire car"],
        "Rail": ["two train tickets", "a day return", "the night train"],
        "Airlines": ["a flight to the client", "an extra suitcase", "a changed booking"],
        "Hotel": ["a night near the fair", "two single rooms", "a late check-out"],
        "Parking": ["a day of parking", "a week of parking"],
    },
    "meals": {
        "Bakery": ["coffee and cake for the team", "sandwiches for six", "breakfast before the workshop"],
        "Kitchen": ["lunch with the auditors", "a working dinner", "soup and rolls"],
        "Pizza": ["food for the late shift", "lunch for eight", "a team dinner"],
        "Grill": ["dinner with two suppliers", "a farewell lunch", "a dinner with clients"],
        "Tea Room": ["drinks after the meeting", "tea and biscuits", "an afternoon break"],
    },
    "office": {
        "Paper": ["printer paper", "a box of envelopes", "two reams of card"],
        "Office Supplies": ["whiteboard markers", "labels and tape", "a box of folders", "ink for the printer"],
        "Furniture": ["a standing desk", "an office chair", "a filing cabinet"],
        "Printing": ["new business cards", "forty brochures", "a banner for the stand"],
        "Lighting": ["two desk lamps", "bulbs for the hall"],
    },
    "software": {
        "Software": ["the yearly licence", "three extra seats", "an upgrade"],
        "Cloud": ["server hosting", "extra storage", "the backup plan"],
        "Analytics": ["a month of error tracking", "the reporting add-on"],
        "Apps": ["the password manager", "the video call plan", "the design app"],
    },
    "repairs": {
        "Plumbing": ["a dripping tap", "unblocking the drain", "a burst pipe"],
        "Electric": ["rewiring the meeting room", "a dead socket", "a new fuse box"],
        "Locks": ["a new door lock", "two spare keys"],
        "Garage": ["the van's brakes", "new front tyres", "an oil change"],
        "Heating": ["the boiler service", "a broken radiator"],
    },
}
MOST = {"travel": 600, "meals": 300, "office": 700, "software": 900, "repairs": 900}
"The largest amount of a category, in whole units."

FAMILIES = (
    "Bell Black Brown Clark Cross Grant Hall Henry Jackson King Lewis Martin Miller Newton Scott Simon Taylor Young"
)
HELD_OUT_FAMILIES = "James Lee Matthew Smith Thomas Wilson Wood"
WORDS = (
    "Blue Central City Cloud Delta East Farm Forest Gate Global Gold Green High Hill Lake London Market Moon Northern "
    "Ocean Old Oxford Park Prime Queen Rain River Royal Silver Sky South Star Stone Sun Union West White Winter"
)
HELD_OUT_WORDS = (
    "Cambridge Field Golden Grand Iron Long New North Omega Pacific Red Rock Rose Solar Spring Urban Water Wild"
)
NAME_FORMS = [
    "{family} {trade}",
    "{family} & Sons {trade}",
    "{word} {trade}",
    "{word} {other} {trade}",
]

TRAIN_PHRASINGS = [
    "{date}: {money} to {payee} for {item}.",
    "Paid {payee} {money} for {item} on {date}.",
    "{payee}, {item}, {money}, {date}.",
    "On {date} I paid {money} at {payee} for {item}.",
    "Please refund {money}: {item}, {payee}, {date}.",
    "{item} from {payee}, came to {money} on {date}.",
    "Receipt from {payee} dated {date}, {money}, {item}.",
    "Card payment {money} {payee} {date}, that was {item}.",
    "We needed {item}, so {payee} charged us {money} on {date}.",
    "{payee} billed {money} for {item}; paid on {date}.",
    "Hi, {item} cost me {money} at {payee} ({date}).",
    "{money} went to {payee} on {date} ({item}).",
    "Invoice {number} from {payee}: {item}, {money}, paid {date}.",
    "{date}, {payee}: {item}. Total {money}.",
    "For the books: {item}, bought from {payee} on {date} for {money}.",
    "My expense for {date} is {item} at {payee}, {money} in all.",
    "{person} bought {item} at {payee} for {money} on {date}.",
    "{item}, {date}, {money} - {payee}, receipt {number}.",
    "Could you book {money} to {payee}? It was {item}, on {date}.",
    "Settled with {payee} on {date}. {money} for {item}, as agreed with {person}.",
    "{person} asked for {item}. {payee} did it on {date} and took {money}.",
    "Spent {money} on {item} ({payee}, {date}).",
    "{payee} / {date} / {item} / {money}",
    "Order {number}, {item}, {money}, placed with {payee} on {date}.",
    "Found a receipt: {payee}, {money}, {item}. Date on it: {date}.",
    "{item}: {money}, {payee}, {date}. Signed off by {person}.",
    "Company card, {date}: {payee} took {money} for {item}.",
    "On {date} {payee} saw to {item}; I paid {money} in cash.",
]
HELD_OUT_PHRASINGS = [
    "Forgot to hand this in: {item} at {payee}, {money}, from {date}.",
    "{date} - {item} - {payee} - {money}, thanks!",
    "{person} got us {item} from {payee} on {date}, which was {money}.",
    "To {payee}, {date}, the sum of {money} for {item}.",
    "Claiming {money} back for {item}, which I had from {payee} on {date}.",
    "{payee} wanted {money} for {item}, and got it on {date}. Slip {number}.",
]
PEOPLE = "Ana Bo Chidi Dana Emil Farah Goran Hana Ines Jonas Kofi Lena Mira Nils Omar Priya"
CURRENCIES = {
    "EUR": ["€{}", "{} EUR", "EUR {}", "{} euros"],
    "USD": ["${}", "{} USD", "USD {}", "{} dollars"],
    "GBP": ["£{}", "{} GBP", "GBP {}", "{} pounds"],
    "CHF": ["CHF {}", "{} CHF", "{} Swiss francs"],
}


def payee(draw: random.Random, families: list[str], words: list[str], trade: str) -> str:
    """A firm's name, such as `Miller & Sons Plumbing`."""
    word, other = draw.sample(words, 2)
    return draw.choice(NAME_FORMS).format(family=draw.choice(families), word=word, other=other, trade=trade)


def money(draw: random.Random, cents: int, currency: str) -> str:
    """An amount as people write it: with or without cents, and with the currency as a sign, a code or a word."""
    return draw.choice(CURRENCIES[currency]).format(f"{cents / 100:.2f}".removesuffix(".00"))


def written(draw: random.Random, date: datetime.date) -> str:
    """A date as people write it."""
    return draw.choice(
        [
            f"{date.day} {date:%B %Y}",
            f"{date.day} {date:%b %Y}",
            f"{date:%B} {date.day}, {date.year}",
            f"{date:%b} {date.day}, {date.year}",
        ]
    )


def row(draw: random.Random, families: str, words: str, phrasings: list[str]) -> Row:
    """One conversation: the system prompt, a note, and its record."""
    category = draw.choice(list(TRADES))
    trade = draw.choice(list(TRADES[category]))
    name = payee(draw, families.split(), words.split(), trade)
    currency = draw.choice(list(CURRENCIES))
    cents = round(100 * math.exp(draw.uniform(math.log(MOST[category] / 20), math.log(MOST[category]))))
    if draw.random() < 0.25:
        cents -= cents % 100
    day = draw.randint(1, 9 if draw.random() < 0.2 else 28)  # writing 3 as 03 takes more practice than copying 13
    date = datetime.date(draw.randint(2022, 2025), draw.randint(1, 12), day)
    note = draw.choice(phrasings).format(
        payee=name,
        money=money(draw, cents, currency),
        item=draw.choice(TRADES[category][trade]),
        date=written(draw, date),
        person=draw.choice(PEOPLE.split()),
        number=draw.randrange(1000, 99_999),
    )
    record = (
        f'{{"payee": "{name}", "amount": {cents / 100:.2f}, "currency": "{currency}", '
        f'"date": "{date.isoformat()}", "category": "{category}"}}'
    )
    messages = [("system", SYSTEM), ("user", note[0].upper() + note[1:]), ("assistant", record)]
    return {"messages": [{"role": role, "content": content} for role, content in messages]}


def note_and_record(made: Row) -> tuple[str, dict[str, object]]:
    """The note, and its record as parsed."""
    messages = made["messages"]
    return messages[1]["content"], json.loads(messages[2]["content"])


def is_new(made: Row, known: list[Row]) -> bool:
    """Whether payee, amount and date occur in no known row, and the note resembles none."""
    note, record = note_and_record(made)
    for other_note, other in map(note_and_record, known):
        if any(record[key] == other[key] for key in ("payee", "amount", "date")):
            return False
        if difflib.SequenceMatcher(None, note.split(), other_note.split(), autojunk=False).ratio() > MOST_ALIKE:
            return False
    return True


def main() -> None:
    """Write train.jsonl and held_out.jsonl beside this file."""
    draw = random.Random(1)
    train = [row(draw, FAMILIES, WORDS, TRAIN_PHRASINGS) for _ in range(TRAIN_ROWS)]
    held_out: list[Row] = []
    while len(held_out) < HELD_OUT_ROWS:
        phrasings = HELD_OUT_PHRASINGS if len(held_out) % 3 == 0 else TRAIN_PHRASINGS
        made = row(draw, HELD_OUT_FAMILIES, HELD_OUT_WORDS, phrasings)
        if is_new(made, train + held_out):
            held_out.append(made)
    for name, rows in (("train", train), ("held_out", held_out)):
        lines = [json.dumps(made, ensure_ascii=False) for made in rows]
        (HERE / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
