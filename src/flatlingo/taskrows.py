"""The rows of a task that has a description, from a folder or from the Hugging Face Hub.

Each reader gives, for every language, a table with the columns row_id, text_a, for pairs text_b, and label; from files
`quoted`, whether a row came in the quotes of a CSV writer; and `key`, where there is one, which is equal for
translations. A label of -1 is one that the source does not know.
"""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
from datasets import ClassLabel

from flatlingo import hub
from flatlingo.errors import FlatlingoError
from flatlingo.rowfiles import HALF_A_PAIR, LineError, has_half_a_pair, jsonl_rows, read_text, tsv_rows
from flatlingo.taskfiles import UNLABELLED, HubSource, TaskDescription

Tables = dict[str, pd.DataFrame]
Files = dict[str, tuple[Path, bool]]


def from_hub(description: TaskDescription, languages: tuple[str, ...], split: str) -> Tables:
    """The rows of a split: "train", in English alone, or "validation", in every language.

    Raises:
        FlatlingoError: as `hub.load_rows`; or a data set without the columns and the labels of the description.
    """
    source = hub_source(description)
    name = source.train if split == "train" else source.validation

    def read(language: str) -> pd.DataFrame:
        rows = hub.load_rows(source.id, source.config.replace("{language}", language), name, revision=source.revision)
        where = f"{source.id}, {language} {name}"
        try:
            names = _named(description, rows.column_names)
            table = rows.to_pandas()[list(names.values())].set_axis(list(names), axis=1)
            if "language" in names:
                table = table[table.pop("language") == language].reset_index(drop=True)
            return _table(table, description, _label_reader(description, rows.features[names["label"]]))
        except ValueError as error:
            raise FlatlingoError(f"{where}: {error}") from error

    return {language: read(language) for language in (("en",) if split == "train" else languages)}


def hub_source(description: TaskDescription) -> HubSource:
    """Where the rows of a task are on the Hub; FlatlingoError if its description does not say."""
    if description.hub is None:
        raise FlatlingoError(
            f"{description.name}: its description names neither a folder nor a data set on the Hub; give the folder of "
            "its files (data, --data)"
        )
    return description.hub


def _label_reader(description: TaskDescription, feature: object) -> Callable[[object], int]:
    """How a label on the Hub is read: by its word, or by the word of its number if the numbers have names."""
    names = feature.names if isinstance(feature, ClassLabel) else None
    n = len(description.labels)

    def read(value: object) -> int:
        if value is None or value != value or value == UNLABELLED:
            return UNLABELLED
        if isinstance(value, str):
            return description.label_of(value)
        if isinstance(value, float) and value.is_integer():
            value = int(value)  # pandas turns a column of integers with a null into one of floats
        word = names[value] if names and 0 <= value < len(names) else value
        try:
            return description.label_of(word)
        except ValueError:
            if isinstance(word, str) or not 0 <= word < n or word != int(word):
                raise ValueError(
                    f"label {word!r} is not one of {description.name}: {', '.join(description.labels)}"
                ) from None
            return int(word)  # numbers that no spelling names are positions

    return read


def _table(rows: pd.DataFrame, description: TaskDescription, label_of: Callable[[object], int]) -> pd.DataFrame:
    labels = {value: label_of(value) for value in rows["label"].unique()}
    return rows.assign(
        row_id=np.arange(len(rows)),
        label=rows["label"].map(labels).astype("int64"),
        **{column: rows[column].fillna("") for column in description.columns},
    )


def from_folder(description: TaskDescription, languages: tuple[str, ...], folder: Path, split: str) -> Tables:
    """The rows of a split in every language that has a file of them, see `files`.

    Raises:
        FlatlingoError: a file is missing, or a line in it (named) is not what the description says.
    """
    return {
        language: _read_file(path, description, language, shared)
        for language, (path, shared) in files(description, languages, folder, split).items()
    }


def files(description: TaskDescription, languages: tuple[str, ...], folder: Path, split: str) -> Files:
    """The file of every language that has one, and whether it is one of all languages.

    "validation" rows must be there in every language, "train" rows in English, which comes first; a training file of
    all languages is read for English alone.

    Raises:
        FlatlingoError: a file is missing.
    """
    train = split == "train"
    found = {language: _find(description, folder, split, language) for language in languages}
    for language in ("en",) if train else languages:
        if found[language] is None:
            raise FlatlingoError(_missing(description, folder, split, language, languages))
    if train:
        others = {language: file for language, file in found.items() if language != "en" and file and not file[1]}
        return {"en": found["en"], **others}
    return found


def _find(description: TaskDescription, folder: Path, split: str, language: str) -> tuple[Path, bool] | None:
    for template in description.paths(split):
        for suffix in (".tsv", ".jsonl"):
            path = folder / (template.replace("{language}", language) + suffix)
            if path.is_file():
                return path, "{language}" not in template
    return None


def _missing(description: TaskDescription, folder: Path, split: str, language: str, languages: tuple[str, ...]) -> str:
    """What is said of a file that is missing."""
    path = folder / (description.paths(split)[0].replace("{language}", language) + ".tsv")
    missing = path if path.parent.is_dir() else path.parent
    train, validation = (description.paths(split)[0] + ".tsv" for split in ("train", "validation"))
    return (
        f"{missing}: no such {'file' if missing == path else 'folder'}; the data folder must hold "
        f"{validation.replace('{language}', 'LANGUAGE')} for {', '.join(languages)} and, for training, "
        f"{train.replace('{language}', 'en')} (or the same as .jsonl)"
    )


def _read_file(path: Path, description: TaskDescription, language: str, shared: bool) -> pd.DataFrame:
    """Read the rows of one language from a file; the row id is the row's index among these."""
    reader = _tsv_records if path.suffix == ".tsv" else _jsonl_records
    rows = []
    try:
        for number, row in reader(read_text(path), description, shared):
            if row.pop("language", language) == language:
                rows.append(_parsed(number, row, description))
    except LineError as error:
        raise FlatlingoError(f"{path}, line {error.number}: {error}") from error
    if not rows:
        reason = f"no rows of language {language}" if path.stat().st_size else "the file is empty"
        raise FlatlingoError(f"{path}: {reason}; each line must hold {_expected(description)}")
    return pd.DataFrame(rows).assign(row_id=np.arange(len(rows)))


def _tsv_records(text: str, description: TaskDescription, shared: bool) -> Iterator[tuple[int, dict]]:
    rows = tsv_rows(text.rstrip("\r\n"))  # blank lines at the end only: others would shift the rows of translations
    try:
        names = _named(description, rows[0].values if rows else [])
    except ValueError:  # no first line of names
        names = [*description.columns, "label"]
        columns, width = {name: position for position, name in enumerate(names)}, len(names)
        reason = f"columns where there must be {width}, tab separated: {_expected(description)}"
    else:
        if twice := [column for column in names.values() if rows[0].values.count(column) > 1]:
            raise LineError(rows[0].number, f"two columns are called {twice[0]!r}")
        columns = {name: rows[0].values.index(column) for name, column in names.items()}
        width, rows = len(rows[0].values), rows[1:]
        reason = f"columns, tab separated, where the first line has {width}"
    _check_language(rows[0].number if rows else 1, columns, description, shared)
    for number, values, quoted in rows:
        if len(values) != width:
            raise LineError(number, f"{len(values)} {reason}")
        yield number, {name: values[position] for name, position in columns.items()} | {"quoted": quoted}


def _jsonl_records(text: str, description: TaskDescription, shared: bool) -> Iterator[tuple[int, dict]]:
    names = None
    for number, row in jsonl_rows(text):
        try:
            if names is None:
                names = _named(description, row)
                _check_language(number, names, description, shared)
            yield number, {name: row[column] for name, column in names.items()} | {"quoted": False}
        except KeyError as error:
            raise LineError(number, f"no value for {error}, which the rows before it have") from error
        except ValueError as error:
            raise error if isinstance(error, LineError) else LineError(number, str(error)) from error


def _check_language(number: int, names: Iterable[str], description: TaskDescription, shared: bool) -> None:
    if shared and "language" not in names:
        raise LineError(number, f"a file of all languages must have the column {description.language!r}")


def _named(description: TaskDescription, available: Iterable[str]) -> dict[str, str]:
    """Which of the available columns holds what; ValueError if a text or the label is not among them."""
    available = list(available)
    wanted = dict(zip(description.columns, description.texts, strict=True)) | {"label": description.label}
    optional = {"key": description.id, "language": (description.language,)}
    found = {
        name: next((column for column in columns if column in available), None)
        for name, columns in (wanted | optional).items()
    }
    if lacking := [" or ".join(columns) for name, columns in wanted.items() if found[name] is None]:
        raise ValueError(f"no column {', '.join(lacking)}; there are {', '.join(map(str, available))[:200]}")
    return {name: column for name, column in found.items() if column is not None}


def _expected(description: TaskDescription) -> str:
    texts = "a text" if len(description.texts) == 1 else "two texts"
    names = ", ".join("/".join(names) for names in (*description.texts, description.label))
    return f"{texts} and a label, or the first line must name their columns ({names})"


def _parsed(number: int, row: dict, description: TaskDescription) -> dict:
    """A row as read, its label as an integer; LineError if it cannot be one."""
    for column in description.columns:
        text = row[column] = "" if row[column] is None else row[column]
        if not isinstance(text, str):
            raise LineError(number, f"{text!r} where a text must be")
        if has_half_a_pair(text):
            raise LineError(number, f"a text with {HALF_A_PAIR}")
        if not description.placeholders and not text.strip():
            raise LineError(number, "an empty text")
    try:
        label = UNLABELLED if row["label"] is None else description.label_of(row["label"])
    except ValueError as error:
        raise LineError(number, str(error)) from error
    return row | {"label": label}
