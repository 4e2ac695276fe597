r"""Descriptions of tasks: what a classification task's labels, texts and files are, in a YAML file and without code.

XNLI and PAWS-X are two such files (`presets/tasks`). One of one's own needs four names and a place:

    name: reviews
    labels: [bad, good]
    texts: review                       # one column, or two: [question, answer]
    languages: [en, de]
    folder: ../data                     # holds reviews/train-en.tsv, reviews/dev-en.tsv, reviews/dev-de.tsv

It is given where a task is named: `load_task("reviews.yaml")`, `flatlingo train --task reviews.yaml`, or a preset. This
module imports neither torch nor the rows of tasks, so that a configuration is read and checked in no time.
"""

from pathlib import Path
from typing import Annotated, Self

from pydantic import BeforeValidator, ConfigDict, Field, model_validator

from flatlingo.errors import FlatlingoError, unknown
from flatlingo.files import PRESETS
from flatlingo.settings import Settings, read_yaml, validated, yaml_file

DESCRIPTIONS = PRESETS / "tasks"
MINI = {"mini-nli": "nli", "mini-paraphrase": "paraphrase"}
REAL_COUNTERPART = {"mini-nli": "xnli", "mini-paraphrase": "pawsx"}
UNLABELLED = -1


def _as_tuple(value: object) -> object:
    return (value,) if isinstance(value, str | int) and not isinstance(value, bool) else value


Words = Annotated[tuple[str, ...], BeforeValidator(_as_tuple)]
"""One word or several, in YAML `label` or `[label, gold_label]`."""
Names = Annotated[Words, Field(min_length=1)]


class HubSource(Settings):
    """A data set on the Hugging Face Hub, whose Parquet files lie at `CONFIG/SPLIT-*.parquet`.

    Attributes:
        id: such as "facebook/xnli".
        revision: a commit, a tag or a branch; None for the newest.
        config: the folder of a language's files; `{language}` stands for its code.
        train: the split to train on; only English is read.
        validation: the split to evaluate on.
    """

    model_config = ConfigDict(coerce_numbers_to_str=True)

    id: str
    revision: str | None = None
    config: str = "{language}"
    train: str = "train"
    validation: str = "validation"


class TaskDescription(Settings):
    """What the rows of a task look like, in files and on the Hub, and where they are.

    Columns are looked up by name in JSONL, on the Hub, and in TSV files with a first line of names; where there are
    several names for one column, the first that a file has. A TSV file without such a line has the texts and the label
    in this order.

    Attributes:
        name: what errors, results and the default paths of files call the task.
        labels: the classes, in the order of the integers that stand for them.
        spellings: of a label, other words (or numbers) that files use for it.
        unlabelled: words in the label's place of a row that has none; such a row is dropped and counted.
        texts: the names of one text column or two.
        label: names of the label's column.
        id: names of a column that is equal for translations of each other; where a file has it, the order is checked.
        language: a column with the language of a row, for files of several languages; rows of others are left out.
        placeholders: texts that stand for a missing translation, besides blank ones; such a row is dropped and counted.
        languages: ISO codes, English among them.
        default_languages: which are read if nothing is said; all by default.
        folder: where the files are, relative to the description; the default of `load_task`'s `data`.
        train: paths below the folder, without .tsv or .jsonl, the first that exists counts; `{language}` stands for its
            code. NAME/train-LANGUAGE by default.
        validation: likewise; NAME/dev-LANGUAGE by default.
        hub: where the rows are if there is no folder.
    """

    model_config = ConfigDict(coerce_numbers_to_str=True)

    name: str = Field(pattern=r"^\w[\w.-]*$")
    labels: Annotated[tuple[str, ...], Field(min_length=2)]
    spellings: dict[str, Words] = Field(default_factory=dict)
    unlabelled: Words = ()
    texts: Annotated[tuple[Names, ...], BeforeValidator(_as_tuple), Field(min_length=1, max_length=2)]
    label: Names = ("label",)
    id: Words = ()
    language: str | None = None
    placeholders: Words = ()
    languages: Names
    default_languages: Words = ()
    folder: Path | None = None
    train: Words = ()
    validation: Words = ()
    hub: HubSource | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if stray := [label for label in self.spellings if label not in self.labels]:
            raise ValueError(f"spellings: {unknown('label', stray[0], self.labels)}")
        words = [*self.labels, *(word for more in self.spellings.values() for word in more), *self.unlabelled]
        if twice := [word for word in words if words.count(word) > 1]:
            raise ValueError(f"labels and spellings: {twice[0]!r} stands for two things")
        if stray := [language for language in self.default_languages if language not in self.languages]:
            raise ValueError(f"default_languages: {unknown('language', stray[0], self.languages)}")
        if both := {name for names in self.texts for name in names} & {*self.label}:
            raise ValueError(f"texts: {both.pop()} is the label's column, which would tell the answer")
        for field, paths in (("train", self.train), ("validation", self.validation)):
            if self.language is None and (alike := [path for path in paths if "{language}" not in path]):
                raise ValueError(
                    f"{field}: {alike[0]} is the same file for every language; put {{language}} into it, or name the "
                    "column that tells the language of a row (language: …)"
                )
        return self

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns of a row that hold texts: `text_a` and, for pairs, `text_b`."""
        return ("text_a", "text_b")[: len(self.texts)]

    def paths(self, split: str) -> tuple[str, ...]:
        """Where the rows of a split ("train" or "validation") may be, below the data folder and without suffix."""
        default = f"{self.name}/{'train' if split == 'train' else 'dev'}-{{language}}"
        return getattr(self, split) or (default,)

    def label_of(self, word: object) -> int:
        """The integer of a label as files spell it, -1 for one of `unlabelled`.

        Raises:
            ValueError: for any other word; the message names those that are known.
        """
        text = str(word)
        for position, label in enumerate(self.labels):
            if text == label or text in self.spellings.get(label, ()):
                return position
        if text in self.unlabelled:
            return UNLABELLED
        known = (f"{x} ({', '.join(self.spellings[x])})" if x in self.spellings else x for x in self.labels)
        raise ValueError(f"label {text!r}; the labels are {', '.join(known)}")


def known_tasks() -> list[str]:
    """Names of the tasks that come with the package: those with a description, and those of the mini world."""
    return [*sorted((path.stem for path in DESCRIPTIONS.glob("*.yaml")), reverse=True), *MINI]


def load_description(task: str | Path) -> TaskDescription:
    """Read the description of a task by its name ("xnli", "pawsx"), or from a path that ends in `.yaml` or `.yml`.

    Raises:
        FlatlingoError: if there is no such description, or it does not have the shape of one; the message names the
            field.

    >>> load_description("pawsx").labels
    ('different', 'paraphrase')
    """
    if str(task) in MINI:
        raise FlatlingoError(f"{task} is generated by the mini world and has no description")
    path = yaml_file(task, "task", DESCRIPTIONS, known_tasks())
    description = validated(TaskDescription, read_yaml(path, "task"), f"task {path.name}")
    if str(task) != description.name and description.name in known_tasks():
        raise FlatlingoError(
            f"task {path.name}: name: {description.name} is a task that comes with flatlingo; rename it"
        )
    if description.folder is None:
        return description
    return description.model_copy(update={"folder": path.parent / description.folder.expanduser()})
