"""Documents of short facts among sentences that do not matter, with questions and exact answers.

A document is a pure function of the generator that is passed in. Within one document every subject
is unique, so a question has one answer, and in every wording the subject comes before the value.
Training seeds by numbers, measurements by strings, so that no document is drawn by both.
"""

from dataclasses import dataclass, replace
from random import Random

# How many facts the shipped weights answer well: see MODEL_CARD.md.
DEMO_FACTS = 24

# How many sentences without a fact there are for each one with a fact, on average.
FILLER_SHARE = 0.25


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


def _phrases(text: str) -> tuple[str, ...]:
    return tuple(" ".join(part.split()) for part in text.split("|"))


PEOPLE = _words(
    """
    Ada Agnes Albert Alma Amir Anders Anika Anton Astrid Aurel Basil Beata Bela Benno Berta
    Boris Bruno Carla Casper Cecil Clara Conrad Cora Dagmar Daria Davor Delia Dora Edgar Edith
    Elena Elias Ella Emil Enzo Erik Esther Eva Fabian Farid Felix Fiona Flora Frida Gerda Gideon
    Greta Gustav Hanna Hector Heidi Helga Hugo Ida Igor Ilse Imran Ines Ingrid Iris Ivan Jana
    Jasper Jonas Judith Julia Kamil Karin Karl Katja Klaus Lara Lars Laura Leon Lidia Linus Lola
    Lotte Luca Magnus Malik Marco Marta Mateo Maud Mila Miriam Nadia Nils Nina Noor Olga Omar
    Oscar Otto Paula Pavel Petra Pia Quinn Rafael Raisa Ralf Rosa Ruben Samir Selma Sonja Stefan
    Sven Tamara Tariq Theo Tilda Tomas Ulla Umar Vera Viktor Viola Walter Wanda Xenia Yara Yusuf
    Zelda Zora
    """
)
CITIES = _words(
    """
    Oslo Lima Cairo Quito Delhi Turin Milan Paris Lyon Porto Madrid Bergen Geneva Zurich Basel
    Vienna Graz Prague Brno Warsaw Krakow Gdansk Riga Vilnius Tallinn Helsinki Turku Malmo Uppsala
    Aarhus Odense Hamburg Bremen Leipzig Dresden Munich Ghent Bruges Utrecht Leiden Dublin Cork
    Leeds York Bath Naples Palermo Athens Sofia Varna Split Zagreb Tirana Ankara Izmir Beirut
    Amman Muscat Tunis Rabat Dakar Accra Lagos Nairobi Lusaka Harare Havana Bogota Cusco Salta
    Santiago Montreal Boston Denver Seattle Kyoto Osaka Seoul Hanoi Manila Perth Darwin
    """
)
JOBS = _words(
    """
    actor baker barber beekeeper bookbinder brewer butcher carpenter chemist clerk cook dancer
    dentist diver doctor editor farmer fisher florist gardener glazier guard hatter jeweller judge
    juggler lawyer librarian mason miller miner nurse painter pianist pilot plumber porter potter
    printer sailor sculptor shepherd singer smith surgeon tailor tanner teacher translator typist
    violinist waiter weaver welder writer
    """
)
OBJECTS = _words(
    """
    anchor atlas axe banjo basket bell bicycle blanket broom bucket camera candle chessboard
    clock coat compass cradle crown diary drill drum fan feather flag flute globe guitar hammer
    harp helmet horn kettle kite ladder lamp lantern lens map mask medal mirror mug necklace
    needle net oar pearl pencil pipe purse quilt radio razor ring rope saddle scarf scissors
    shield shovel sled spoon stamp statue sword teapot telescope tent thimble torch trumpet
    umbrella vase violin wallet whistle wreath
    """
)
PLACES = _words(
    """
    attic barn cellar chapel cupboard garage garden greenhouse hall hallway kitchen library
    loft lounge nursery office orchard oven pantry parlour porch shed stable study tower trunk
    tunnel vault veranda wardrobe well workshop bathtub bedroom cabin canoe chimney crypt drawer
    fridge gallery
    """
)
LOCKS = _words(
    """
    amber apple aspen birch bronze cedar cherry cobalt copper coral cotton crimson crystal
    ebony emerald fern golden granite hazel indigo ivory jade juniper lemon lilac linen maple
    marble mint olive onyx opal orange orchid pewter pine plum purple rowan ruby rust saffron
    salmon scarlet silver slate teal tulip turquoise velvet violet walnut willow yellow
    """
)
DIGITS = "0123456789"
CODE_LENGTH = 4


@dataclass(frozen=True, slots=True)
class Relation:
    """One kind of fact: S stands for the subject, V for the value in its wordings."""

    name: str
    subjects: tuple[str, ...]
    values: tuple[str, ...] | None  # None: a random code
    statements: tuple[str, ...]
    questions: tuple[str, ...]
    digits: str = DIGITS  # that codes are made of


RELATIONS = (
    Relation(
        "home",
        PEOPLE,
        CITIES,
        ("S lives in V.", "S has moved to V.", "S has a flat in V.", "S settled in V."),
        ("Where does S live?", "In which city is S at home?"),
    ),
    Relation(
        "job",
        PEOPLE,
        JOBS,
        ("S works as a V.", "S is the new V.", "S trained as a V.", "S earns a wage as V."),
        ("What is the job of S?", "What does S do for a living?"),
    ),
    Relation(
        "place",
        OBJECTS,
        PLACES,
        ("The S is in the V.", "The S was left in the V.", "Find the S in the V."),
        ("Where is the S?", "Where was the S left?"),
    ),
    Relation(
        "code",
        LOCKS,
        None,
        ("The S lock opens with V.", "For the S lock, dial V.", "The S lock has code V."),
        ("What is the code of the S lock?", "Which code opens the S lock?"),
    ),
)

# All subjects, in the order of their numbers.
SUBJECTS = PEOPLE + OBJECTS + LOCKS

FILLER_SUBJECTS = _phrases(
    """
    the rain|the wind|an old song|the evening train|the morning fog|a grey cat|the market|
    the harbour|a long letter|the river|the summer fair|a flock of geese|the bakery|the moon|
    the first snow|a slow tram|the choir|the town band|a stray dog|the road|the tea room|
    the news|a distant storm|the ferry
    """
)
FILLER_PREDICATES = _phrases(
    """
    came and went|kept everyone awake|made the children laugh|was late again|went on until noon|
    did not last long|was hardly noticed|brought some comfort|was quiet that day|changed nothing|
    seemed far away|was worth the wait|drew a small crowd|stopped before dark|
    was a welcome sight|surprised nobody|started early|took its time
    """
)


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked, and the exact answer."""

    text: str
    answer: str
    relation: str
    subject: str


@dataclass(frozen=True, slots=True)
class Document:
    """Has no newline at its end; `questions` has one for each fact, in its order.

    `spans` says from where to where in the text each fact's sentence goes.
    """

    text: str
    questions: tuple[Question, ...]
    spans: tuple[tuple[int, int], ...]


def make_document(rng: Random, facts: int, relations: tuple[Relation, ...] = RELATIONS) -> Document:
    """A document that states `facts` facts of these relations."""
    sentences, questions, spans = [], [], []
    length = 0
    used: set[str] = set()
    for _ in range(facts):
        relation = rng.choice(relations)
        subject = _draw_unused(rng, relation.subjects, used)
        value = _draw_value(rng, relation)
        sentence = _worded(rng, relation.statements, subject, value)
        asked = _worded(rng, relation.questions, subject, value)
        questions.append(Question(asked, value, relation.name, subject))
        spans.append((length, length + len(sentence)))
        if rng.random() < FILLER_SHARE:
            sentence += " " + _filler(rng)
        sentences.append(sentence)
        length += len(sentence) + 1
    return Document(" ".join(sentences), tuple(questions), tuple(spans))


def narrowed(rng: Random, relation: Relation) -> Relation:
    """The same with values that are easily confused: one initial letter, or codes of two digits."""
    if relation.values is None:
        return replace(relation, digits="".join(rng.sample(DIGITS, 2)))
    initial = rng.choice(relation.values)[0]
    return replace(relation, values=tuple(v for v in relation.values if v[0] == initial))


def unseen_document(number: int, facts: int) -> Document:
    """Document `number`, from 0, of those that training never draws."""
    return make_document(Random(f"unseen {number}"), facts)  # noqa: S311 - not secret


def demo_document(facts: int = DEMO_FACTS) -> Document:
    """The one that the demonstration reads; unseen as well."""
    return make_document(Random("demo"), facts)  # noqa: S311 - not secret


def _draw_unused(rng: Random, pool: tuple[str, ...], used: set[str]) -> str:
    """Draw from `pool` until it is a subject that this document has not had, and note it."""
    while (subject := rng.choice(pool)) in used:
        pass
    used.add(subject)
    return subject


def _worded(rng: Random, wordings: tuple[str, ...], subject: str, value: str) -> str:
    words = rng.choice(wordings)
    return words.replace("V", value, 1).replace("S", subject, 1)


def _draw_value(rng: Random, relation: Relation) -> str:
    if relation.values is None:
        return "".join(rng.choices(relation.digits, k=CODE_LENGTH))
    return rng.choice(relation.values)


def _filler(rng: Random) -> str:
    sentence = f"{rng.choice(FILLER_SUBJECTS)} {rng.choice(FILLER_PREDICATES)}."
    return sentence[0].upper() + sentence[1:]
