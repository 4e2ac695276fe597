"""Hand-written sentences for every construction in every language, and the lexicon behind them."""

import random

import pytest

from flatlingo.miniworld import LANGUAGES, NP, Frame, render
from flatlingo.miniworld.draw import random_frame, reworded
from flatlingo.miniworld.edits import edits
from flatlingo.miniworld.frame import problem
from flatlingo.miniworld.lexicon import CONCEPTS, FORMS, canonical, of_kind

LAURA, DANIEL = NP("name", "laura"), NP("name", "daniel")
# frame, then the sentence in English, German, Spanish, Chinese
SENTENCES = {
    "indefinite": (
        Frame(NP("a", "dog"), "chase", NP("a", "cat"), place="garden"),
        "A dog is chasing a cat in the garden.",
        "Ein Hund verfolgt eine Katze im Garten.",
        "Un perro está persiguiendo un gato en el jardín.",
        "一只狗正在花园里追赶一只猫。",
    ),
    "an, weak noun": (
        Frame(NP("a", "artist"), "feed", NP("a", "monkey", "ugly"), time="today"),
        "An artist is feeding an ugly monkey today.",
        "Ein Künstler füttert heute einen hässlichen Affen.",
        "Un artista está alimentando un mono feo hoy.",
        "一名艺术家今天正在喂一只丑陋的猴子。",
    ),
    "definite": (
        Frame(NP("the", "woman", "young"), "buy", NP("the", "coat", "expensive"), place="market", time="morning"),
        "The young woman is buying the expensive coat at the market this morning.",
        "Die junge Frau kauft den teuren Mantel heute Morgen auf dem Markt.",
        "La mujer joven está comprando el abrigo caro en el mercado esta mañana.",
        "这个年轻的女人今天早上正在市场上购买这件昂贵的外套。",
    ),
    "intransitive": (
        Frame(NP("a", "horse", "strong"), "sleep", place="forest"),
        "A strong horse is sleeping in the forest.",
        "Ein starkes Pferd schläft im Wald.",
        "Un caballo fuerte está durmiendo en el bosque.",
        "一匹强壮的马正在森林里睡觉。",
    ),
    "reflexive, time in front": (
        Frame(NP("a", "canary"), "move", time="morning", front="time"),
        "This morning, a canary is moving.",
        "Heute Morgen bewegt sich ein Kanarienvogel.",
        "Esta mañana, un canario está moviéndose.",
        "今天早上，一只金丝雀正在移动。",
    ),
    "place in front": (
        Frame(NP("a", "girl"), "read", NP("a", "letter"), place="kitchen", time="evening", front="place"),
        "In the kitchen, a girl is reading a letter this evening.",
        "In der Küche liest ein Mädchen heute Abend einen Brief.",
        "En la cocina, una niña está leyendo una carta esta noche.",
        "在厨房里，一个女孩今天晚上正在阅读一封信。",
    ),
    "every": (
        Frame(NP("every", "nurse", "famous"), "kiss", NP("a", "boy", "sad")),
        "Every famous nurse is kissing a sad boy.",
        "Jede berühmte Krankenschwester küsst einen traurigen Jungen.",
        "Cada enfermera famosa está besando a un niño triste.",
        "每名著名的护士都在亲吻一个悲伤的男孩。",
    ),
    "all": (
        Frame(NP("all", "cow", "white"), "run", place="beach"),
        "All white cows are running on the beach.",
        "Alle weißen Kühe rennen am Strand.",
        "Todas las vacas blancas están corriendo en la playa.",
        "所有白色的奶牛都在海滩上奔跑。",
    ),
    "not every": (
        Frame(NP("not every", "cat", "black"), "play", time="noon"),
        "Not every black cat is playing at noon today.",
        "Nicht jede schwarze Katze spielt heute Mittag.",
        "No todos los gatos negros están jugando hoy al mediodía.",
        "不是每只黑色的猫今天中午都在玩耍。",
    ),
    "no": (
        Frame(NP("no", "police_officer"), "sing", place="hospital"),
        "No police officer is singing in the hospital.",
        "Kein Polizist singt im Krankenhaus.",
        "Ningún policía está cantando en el hospital.",
        "没有一名警察在医院里唱歌。",
    ),
    "no, indefinite object": (
        Frame(NP("no", "woman"), "chase", NP("a", "cow", "young")),
        "No woman is chasing any young cow.",
        "Keine Frau verfolgt eine junge Kuh.",
        "Ninguna mujer está persiguiendo ninguna vaca joven.",
        "没有一个女人在追赶任何年轻的奶牛。",
    ),
    "numeral": (
        Frame(NP("two", "boy", "young"), "push", NP("the", "table", "old")),
        "Two young boys are pushing the old table.",
        "Zwei junge Jungen schieben den alten Tisch.",
        "Dos niños jóvenes están empujando la mesa vieja.",
        "两个年轻的男孩正在推这张旧桌子。",
    ),
    "numeral object": (
        Frame(LAURA, "look_for", NP("three", "teacher"), place="school"),
        "Laura is looking for three teachers in the school.",
        "Laura sucht drei Lehrer in der Schule.",
        "Laura está buscando a tres profesores en la escuela.",
        "劳拉正在学校里寻找三名教师。",
    ),
    "at least": (
        Frame(NP("at least four", "bird", "small"), "jump", time="afternoon"),
        "At least four small birds are jumping this afternoon.",
        "Mindestens vier kleine Vögel springen heute Nachmittag.",
        "Al menos cuatro pájaros pequeños están saltando esta tarde.",
        "至少四只小鸟今天下午正在跳跃。",
    ),
    "universal object": (
        Frame(LAURA, "read", NP("all", "novel", "new")),
        "Laura is reading all new novels.",
        "Laura liest alle neuen Romane.",
        "Laura está leyendo todas las novelas nuevas.",
        "劳拉正在阅读所有新小说。",
    ),
    "every in the object": (
        Frame(DANIEL, "wash", NP("every", "shirt", "dirty")),
        "Daniel is washing every dirty shirt.",
        "Daniel wäscht jedes schmutzige Hemd.",
        "Daniel está lavando cada camisa sucia.",
        "丹尼尔正在清洗每件肮脏的衬衫。",
    ),
    "negation, intransitive": (
        Frame(LAURA, "sleep", time="evening", negated=True),
        "Laura is not sleeping this evening.",
        "Laura schläft heute Abend nicht.",
        "Laura no está durmiendo esta noche.",
        "劳拉今天晚上没有在睡觉。",
    ),
    "negation, name": (
        Frame(LAURA, "interview", DANIEL, time="today", negated=True),
        "Laura is not interviewing Daniel today.",
        "Laura interviewt Daniel heute nicht.",
        "Laura no está entrevistando a Daniel hoy.",
        "劳拉今天没有在采访丹尼尔。",
    ),
    "negation, definite, a + el": (
        Frame(NP("the", "lawyer"), "criticise", NP("the", "cook"), negated=True),
        "The lawyer is not criticising the cook.",
        "Der Anwalt kritisiert den Koch nicht.",
        "El abogado no está criticando al cocinero.",
        "这名律师没有在批评这名厨师。",
    ),
    "negation, indefinite object": (
        Frame(DANIEL, "repair", NP("a", "bicycle", "red"), time="afternoon", negated=True),
        "Daniel is not repairing any red bicycle this afternoon.",
        "Daniel repariert heute Nachmittag kein rotes Fahrrad.",
        "Daniel no está reparando ninguna bicicleta roja esta tarde.",
        "丹尼尔今天下午没有在修理任何红色的自行车。",
    ),
    "separable verb": (
        Frame(NP("the", "bear"), "attack", NP("a", "rabbit"), place="forest"),
        "The bear is attacking a rabbit in the forest.",
        "Der Bär greift ein Kaninchen im Wald an.",
        "El oso está atacando un conejo en el bosque.",
        "这头熊正在森林里攻击一只兔子。",
    ),
    "separable verb, negation, in front": (
        Frame(LAURA, "look_at", DANIEL, time="noon", negated=True, front="time"),
        "At noon today, Laura is not looking at Daniel.",
        "Heute Mittag sieht Laura Daniel nicht an.",
        "Hoy al mediodía, Laura no está mirando a Daniel.",
        "今天中午，劳拉没有在注视丹尼尔。",
    ),
    "passive": (
        Frame(NP("a", "dog"), "chase", NP("a", "cat"), place="garden", passive=True),
        "A cat is being chased by a dog in the garden.",
        "Eine Katze wird im Garten von einem Hund verfolgt.",
        "Un gato está siendo perseguido por un perro en el jardín.",
        "一只猫正在花园里被一只狗追赶。",
    ),
    "passive, dative plural, agreement": (
        Frame(NP("three", "boy"), "examine", NP("the", "guitar"), passive=True),
        "The guitar is being examined by three boys.",
        "Die Gitarre wird von drei Jungen untersucht.",
        "La guitarra está siendo examinada por tres niños.",
        "这把吉他正在被三个男孩检查。",
    ),
    "passive, plural subject": (
        Frame(NP("the", "doctor", "clever"), "comfort", NP("two", "nurse"), time="today", passive=True),
        "Two nurses are being comforted by the clever doctor today.",
        "Zwei Krankenschwestern werden heute vom klugen Arzt getröstet.",
        "Dos enfermeras están siendo consoladas por el médico inteligente hoy.",
        "两名护士今天正在被这名聪明的医生安慰。",
    ),
    "passive, all": (
        Frame(NP("all", "dog", "strong"), "protect", LAURA, passive=True),
        "Laura is being protected by all strong dogs.",
        "Laura wird von allen starken Hunden geschützt.",
        "Laura está siendo protegida por todos los perros fuertes.",
        "劳拉正在被所有强壮的狗保护。",
    ),
    "passive of every object": (
        Frame(LAURA, "hide", NP("every", "toy"), passive=True),
        "Every toy is being hidden by Laura.",
        "Jedes Spielzeug wird von Laura versteckt.",
        "Cada juguete está siendo escondido por Laura.",
        "每个玩具都正在被劳拉藏起来。",
    ),
    "passive, universal": (
        Frame(LAURA, "steal", NP("all", "vehicle", "red"), time="noon", passive=True),
        "All red vehicles are being stolen by Laura at noon today.",
        "Alle roten Fahrzeuge werden heute Mittag von Laura gestohlen.",
        "Todos los vehículos rojos están siendo robados por Laura hoy al mediodía.",
        "所有红色的车辆今天中午都正在被劳拉偷走。",
    ),
    "animals as objects": (
        Frame(NP("every", "cook"), "wash", NP("the", "bear"), place="kitchen", time="today"),
        "Every cook is washing the bear in the kitchen today.",
        "Jeder Koch wäscht den Bären heute in der Küche.",
        "Cada cocinero está lavando al oso en la cocina hoy.",
        "每名厨师今天都在厨房里清洗这头熊。",
    ),
    "passive, separable verb": (
        Frame(NP("a", "baker"), "prepare", NP("a", "cake", "big"), place="house", passive=True),
        "A big cake is being prepared by a baker in the house.",
        "Ein großer Kuchen wird im Haus von einem Bäcker zubereitet.",
        "Un pastel grande está siendo preparado por un panadero en la casa.",
        "一个大蛋糕正在房子里被一名面包师制作。",
    ),
    "two-word noun": (
        Frame(NP("at least two", "dachshund", "brave"), "move", place="house"),
        "At least two brave dachshunds are moving in the house.",
        "Mindestens zwei mutige Dackel bewegen sich im Haus.",
        "Al menos dos perros salchicha valientes están moviéndose en la casa.",
        "至少两只勇敢的腊肠犬正在房子里移动。",
    ),
}


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("construction", SENTENCES)
def test_sentence(construction, language):
    frame, *sentences = SENTENCES[construction]
    assert problem(frame) is None
    assert render(frame, language) == sentences[LANGUAGES.index(language)]


# All cases and genders of the German noun phrase: subject (nominative), object (accusative), agent (dative).
GERMAN = [
    (NP("a", "horse", "aged"), "ein altes Pferd", "ein altes Pferd", "einem alten Pferd"),
    (NP("a", "cat", "aged"), "eine alte Katze", "eine alte Katze", "einer alten Katze"),
    (NP("a", "bear", "aged"), "ein alter Bär", "einen alten Bären", "einem alten Bären"),
    (NP("the", "horse", "aged"), "das alte Pferd", "das alte Pferd", "dem alten Pferd"),
    (NP("the", "cat", "aged"), "die alte Katze", "die alte Katze", "der alten Katze"),
    (NP("the", "dog", "aged"), "der alte Hund", "den alten Hund", "dem alten Hund"),
    (NP("every", "dog", "aged"), "jeder alte Hund", "jeden alten Hund", "jedem alten Hund"),
    (NP("every", "cat"), "jede Katze", "jede Katze", "jeder Katze"),
    (NP("no", "dog", "aged"), "kein alter Hund", "keinen alten Hund", "keinem alten Hund"),
    (NP("all", "man", "aged"), "alle alten Männer", "alle alten Männer", "allen alten Männern"),
    (NP("two", "man", "aged"), "zwei alte Männer", "zwei alte Männer", "zwei alten Männern"),
    (NP("two", "taxi", "new"), "zwei neue Taxis", "zwei neue Taxis", "zwei neuen Taxis"),
    (NP("at least five", "woman"), *["mindestens fünf Frauen"] * 3),
]


@pytest.mark.parametrize(("np", "nominative", "accusative", "dative"), GERMAN, ids=lambda x: getattr(x, "noun", x))
def test_german_cases(np, nominative, accusative, dative):
    from flatlingo.miniworld.german import noun_phrase

    assert [noun_phrase(np, case) for case in ("nom", "acc", "dat")] == [nominative, accusative, dative]


@pytest.mark.parametrize("language", LANGUAGES)
def test_lexicon_is_complete(language):
    """Every concept has every form its kind needs, in the same order as the concepts."""
    needed = {
        "en": {"noun": "word plural", "verb": "word", "transitive": "participle"},
        "de": {"noun": "word gender plural", "verb": "word plural", "transitive": "participle"},
        "es": {
            "noun": "word gender plural",
            "verb": "word",
            "transitive": "participle",
            "adjective": "word plural feminine feminine_plural",
            "name": "word gender",
        },
        "zh": {"noun": "word classifier"},
    }[language]
    assert list(FORMS[language]) == list(CONCEPTS)
    for concept in CONCEPTS.values():
        columns = needed.get(concept.kind, "word")
        columns += " " + needed.get("transitive", "") if concept.object else ""
        empty = [column for column in columns.split() if not FORMS[language][concept.id][column]]
        assert not empty, f"{concept.id} has no {empty}"


def test_concepts_refer_to_concepts():
    for concept in CONCEPTS.values():
        for other in (*concept.excludes, *filter(None, (concept.isa, concept.same_as))):
            assert CONCEPTS[other].kind == concept.kind or concept.kind == "name"
        for noun in (*concept.subject, *concept.object):
            assert CONCEPTS[noun].kind == "noun"


@pytest.mark.parametrize("language", LANGUAGES)
def test_words_of_a_kind_differ(language):
    """No two nouns, verbs, ... share a form, but adjectives for different classes of nouns (aged, old: alt)."""
    for kind in ("noun", "verb", "place", "time", "name"):
        words = [(FORMS[language][c]["word"], bool(CONCEPTS[c].object)) for c in of_kind(kind)]
        assert len(set(words)) == len(words)


@pytest.mark.parametrize("language", LANGUAGES)
def test_different_meanings_are_said_differently(language):
    """One sentence never has two meanings, among random frames and all that is one edit away from them."""
    rng, meaning_of = random.Random(0), {}
    for _ in range(250):
        frame = random_frame(rng)
        for variant in (frame, *(edit.frame for edit in edits(frame) if edit.valid)):
            said = reworded(variant, rng)
            assert problem(said) is None
            text = render(said, language)
            assert meaning_of.setdefault(text, variant.meaning) == variant.meaning, text


@pytest.mark.parametrize("language", LANGUAGES)
def test_shape_of_sentences(language):
    rng = random.Random(1)
    for _ in range(500):
        frame = reworded(random_frame(rng), rng)
        assert problem(frame) is None
        text = render(frame, language)
        assert "  " not in text
        assert text.endswith("。" if language == "zh" else ".")
        if language == "zh":
            assert " " not in text
            assert "," not in text
        else:
            assert text[0].isupper()
            assert 2 <= len(text.split()) <= 22


def test_meaning_ignores_wording_only():
    frame = Frame(NP("all", "physician"), "purchase", NP("the", "bike"), place="house")
    same = Frame(NP("every", "doctor"), "buy", NP("the", "bicycle"), place="house", passive=True, front="place")
    assert frame.meaning == same.meaning
    assert canonical("bike") == "bicycle"
    assert frame.meaning != Frame(NP("all", "physician"), "purchase", NP("the", "bike"), place="kitchen").meaning


@pytest.mark.parametrize(
    ("frame", "reason"),
    [
        (Frame(LAURA, "chase"), "needs an object"),
        (Frame(LAURA, "sleep", DANIEL), "takes no object"),
        (Frame(NP("a", "dog"), "read", NP("a", "book")), "'dog' does not go with verb 'read'"),
        (Frame(NP("the", "dog", "rich"), "run"), "'rich' does not go with 'dog'"),
        (Frame(NP("most", "dog"), "run"), "unknown"),
        (Frame(NP("every", "dog"), "run", negated=True), "negated"),
        (Frame(NP("every", "dog"), "chase", NP("a", "cat"), passive=True), "passive"),
        (Frame(NP("a", "dog"), "chase", NP("every", "cat")), "object needs a name"),
        (Frame(LAURA, "chase", NP("every", "cat"), place="garden"), "ambiguous"),
        (Frame(LAURA, "praise", NP("the", "person")), "may be the same"),
        (Frame(LAURA, "sleep", front="place"), "no place that could stand in front"),
        (Frame(NP("every", "dog"), "run", place="garden", front="place"), "no place that could stand in front"),
        (Frame(LAURA, "sleep", place="garden", negated=True), "beside a negation"),
        (Frame(DANIEL, "praise", LAURA, negated=True, passive=True), "passive"),
        (Frame(NP("no", "mouse"), "bite", NP("the", "girl"), passive=True), "passive"),
        (Frame(LAURA, "look_for", DANIEL, passive=True), "passive"),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_frames_outside_the_fragment_are_refused(frame, reason):
    assert reason in problem(frame)
