"""Asks a model one question about one picture for one user: the shortest way from a photograph to an answer."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch

from prefmoe import metrics
from prefmoe.backbones.errors import PromptError
from prefmoe.backbones.loading import load_backbone
from prefmoe.backbones.pictures import load_pictures
from prefmoe.config import DEFAULT_EDITION, Edition, PrefMoEMethod, known_editions, load_edition
from prefmoe.data import prompts
from prefmoe.data.benchmark import FACETS, OPTION_LETTERS, Benchmark, Example, Preference, User, name_mistake
from prefmoe.data.miniature import LIKES_QUESTIONS
from prefmoe.data.sources import load_benchmark
from prefmoe.models.base import Method, build_method
from prefmoe.models.saved import CONFIG_FILE, folder_of
from prefmoe.running.evaluation import evaluate
from prefmoe.running.shortening import TooLongError
from prefmoe.running.together import score
from prefmoe.system.files import FileError, read_json
from prefmoe.system.frozen import Frozen
from prefmoe.system.names import did_you_mean
from prefmoe.system.places import expanded, known_backbones
from prefmoe.system.run_files import METHOD_FOLDER, RUN_FILE, RunFileError, read_story, verify
from prefmoe.system.yaml_settings import read_checked

Attribute = Literal["human", "animal", "object", "character"]


class AskError(ValueError):
    """A question that cannot be asked as it was put; the message says what was expected."""


@dataclass(frozen=True)
class Answer:
    """What a model says.

    Attributes:
        text: as it said it.
        choice: how `metrics.parse_answer` reads it: "yes", "no", or "A" ... "D"; None where it is none of those.
        p_yes: the probability of yes among yes and no, of a question without options; else None.
        probabilities: of every answer that the question allows, among these.
    """

    text: str
    choice: str | None
    p_yes: float | None
    probabilities: dict[str, float]

    def __str__(self) -> str:
        shares = self.probabilities if self.p_yes is None else {"yes": self.p_yes}
        return f"{self.text} ({', '.join(f'P({answer}) = {share:.2f}' for answer, share in shares.items())})"


class Profile(Frozen):
    """Somebody who wants to be known: what a profile file holds.

    Attributes:
        picture: a file, seen from the profile file's folder.
        likes, dislikes: items by facet.
    """

    name: str
    picture: Path
    description: str = ""
    attribute: Attribute = "human"
    likes: dict[str, tuple[str, ...]] = {}
    dislikes: dict[str, tuple[str, ...]] = {}


def read_profile(path: str | Path) -> Profile:
    """Reads a profile from YAML (or JSON). Raises AskError naming the file, and the field and what was expected."""
    profile = read_checked(file := expanded(path), Profile, AskError)
    return profile.model_copy(update={"picture": file.parent / expanded(profile.picture)})


class Assistant:
    """A method that answers one question at a time, for users of its benchmark and those added.

    Attributes:
        method: trained or not; everything else about it is `Method`'s.
    """

    def __init__(self, method: Method) -> None:
        self.method = method

    @property
    def users(self) -> list[str]:
        """Names of everybody whom it knows."""
        return list(self.method.benchmark.users)

    def add_user(
        self,
        name: str,
        picture: str | Path,
        description: str = "",
        likes: Mapping[str, Sequence[str]] | None = None,
        dislikes: Mapping[str, Sequence[str]] | None = None,
        attribute: Attribute = "human",
    ) -> None:
        """Makes somebody known, without training.

        Args:
            name: a name that nobody has yet. picture: the file of one picture that shows the user.
            description: how the user looks; without one the name stands for it.
            likes, dislikes: items in words by facet, ``{"travel": ["camping"]}``, of the facets `FACETS`.
            attribute: what the user is: "human", "animal", "object" or "character".

        Raises AskError if the name, the attribute or a facet is none, something is no text, or an item cannot be told
        from two; CollationError if the picture cannot be read; MethodError if there is such a user, or the method needs
        training questions to know one.
        """
        _check_words("the name", name)
        if mistake := name_mistake(name):
            raise AskError(f"the name {name!r}: expected {mistake}")
        _check_words(f"{name}, description", description)
        if attribute not in get_args(Attribute):
            raise AskError(f"{name}, attribute: expected one of {', '.join(get_args(Attribute))}; found {attribute!r}")
        likes, dislikes = likes or {}, dislikes or {}
        for tastes in (likes, dislikes):
            _check_tastes(name, tastes)
        _check_file(picture)
        load_pictures([picture])
        self.method.add_user(
            User(
                name=name,
                attribute=attribute,
                description=description.strip() or prompts.PLACEHOLDER,
                preferences={
                    facet: Preference(likes=tuple(likes.get(facet, ())), dislikes=tuple(dislikes.get(facet, ())))
                    for facet in FACETS
                    if likes.get(facet) or dislikes.get(facet)
                },
                images=(Path(picture),),
            )
        )

    def ask(
        self, picture: str | Path, question: str, user: str, options: Sequence[str] = (), *, max_new_tokens: int = 8
    ) -> Answer:
        """The answer to one question about one picture, without small talk before it, generated greedily.

        Args:
            picture: the file of a picture; relative paths are seen from where Python runs.
            question: names the user as anybody would, or as <sks>.
            user: whom it is about, one of `users`.
            options: the texts of A to D of a multiple-choice question, in this order; a question without options is to
                be answered with yes or no.
            max_new_tokens: the longest answer, in tokens of the backbone's tokenizer.

        Returns an `Answer`; its probabilities, in [0, 1], are of the answers that the question allows and sum to 1, and
        its ``p_yes`` is None for a question with options.

        Raises:
            AskError: if the user is unknown, the question is empty, no text or too long for the backbone, the options
                are neither none nor four texts, or the picture is given as something else than a file.
            CollationError: if the picture cannot be read.

        Example::

            model = prefmoe.assistant("llava-mini")
            likes, dislikes = {"travel": ["camping", "sailing"]}, {"travel": ["flights", "trains"]}
            model.add_user("Ada", "docs/examples/ada.png", likes=likes, dislikes=dislikes)
            answer = model.ask("docs/examples/camping.png", "Does this suit Ada?", user="Ada")
            print(answer, answer.choice, answer.p_yes)
        """
        self._check(user, question)
        if isinstance(options, str) or not isinstance(options, Sequence):
            raise AskError(f"expected a list of options, found {options!r:.80}")
        if len(options) not in (0, len(OPTION_LETTERS)):
            raise AskError(f"expected no options, or {len(OPTION_LETTERS)}; found {len(options)}")
        for letter, option in zip(OPTION_LETTERS, options, strict=False):
            _check_words(f"option {letter}", option)
            if not option.strip():
                raise AskError(f"option {letter} is empty")
        _check_file(picture)
        load_pictures([picture])
        example = _example(0, user, question, Path(picture), tuple(options))
        try:
            row = evaluate(self.method, [example], turns=0, batch_size=1, max_new_tokens=max_new_tokens).iloc[0]
        except (PromptError, TooLongError) as error:
            raise AskError(f"the question: {str(error).rpartition(f'question 0 ({user}): ')[2]}") from error
        allowed = OPTION_LETTERS if options else ("yes", "no")
        kind = "multiple_choice" if options else "yes_no"
        choice = metrics.parse_answer(row["prediction"], kind, options)
        return Answer(
            text=row["prediction"],
            choice=None if not metrics.is_parsed(choice, kind) else choice.upper() if options else choice,
            p_yes=None if options else float(row["p_yes"]),
            probabilities={answer: float(row[f"p_{answer.lower()}"]) for answer in allowed},
        )

    def rank(
        self, pictures: Sequence[str | Path], user: str, question: str = LIKES_QUESTIONS[0]
    ) -> list[tuple[str | Path, float]]:
        """Pictures in the order in which a user would like them, each with P(yes); of equals the earlier one first.

        The probabilities are those of `ask`, in few passes: what stands before the picture is computed once.

        Args:
            pictures: their files, at least one. user: one of `users`.
            question: to be answered with yes or no; names the user as anybody would, or as <sks>.

        Returns pairs of a picture, as it was given, and its P(yes) in [0, 1], the highest first.

        Raises AskError if the user is unknown, the question is empty, no text or too long, there is no picture, or one
        is no file; CollationError if a picture cannot be read.
        """
        self._check(user, question)
        if isinstance(pictures, str | Path) or not len(pictures):
            raise AskError(f"expected a list of pictures, found {pictures!r}")
        for picture in pictures:
            _check_file(picture)
        load_pictures(pictures)
        examples = [_example(index, user, question, Path(picture)) for index, picture in enumerate(pictures)]
        try:
            scores = score(self.method, examples)
        except PromptError as error:
            raise AskError(f"the question: {error}") from error
        return sorted(zip(pictures, scores.tolist(), strict=True), key=lambda pair: -pair[1])

    def _check(self, user: str, question: str) -> None:
        """Raises AskError unless the user is known and something is asked, in words."""
        _check_words("the user", user)
        _check_words("the question", question)
        if user not in self.method.benchmark.users:
            some = ", ".join(self.users[:5])
            raise AskError(
                f"nobody is called {user!r} here; add_user makes somebody known, and {len(self.users)} are: {some}, ..."
                f"{did_you_mean(user, self.users)}"
            )
        if not question.strip():
            raise AskError("the question is empty")


def assistant(
    source: str | Path = "llava-mini",
    *,
    backbone: str | Path | None = None,
    edition: str | Edition | None = None,
    **options: Any,
) -> Assistant:
    """Loads a model to ask.

    Args:
        source: an adapter (the folder of a finished run, what save_pretrained wrote, or a hub repository owner/name),
            or a backbone's name or folder, on which PrefMoE is put untrained: it reads the profile of whoever asks.
        backbone: of an adapter; None for the one that it names.
        edition: whose users the model knows, and whose settings an untrained PrefMoE has; None for the edition of the
            run that made the adapter, else mini.
        options: of `load_backbone`, such as device and dtype.

    Returns an `Assistant` whose method is in evaluation mode.

    Raises AskError if the source is none of these, or a run whose files have changed since it was finished; MethodError
    if an adapter does not fit backbone or users; BackboneError, HubError, SourceError from loading.
    """
    if str(source) in known_backbones() or (expanded(source) / "config.json").is_file():
        if backbone is not None:
            raise AskError(f"{source} is a backbone; expected an adapter where a backbone is given beside it")
        used = load_edition("mini" if edition is None else edition)
        known = load_benchmark(used)
        loaded = load_backbone(source, **options)
        return Assistant(build_method(_prefmoe(used), loaded, known, seed=0, cache=False).eval())
    folder = _adapter_folder(source)
    made_by = _made_by(folder)
    names = known_editions()
    if edition is None and made_by not in names:  # a path might be of a file whose methods are run
        expected = f"expected one of config/, {', '.join(names)}; say with --edition whose users are known"
        raise AskError(f"{folder.parent / RUN_FILE}, edition: {expected}; found {made_by!r:.80}")
    try:
        named = read_json(folder / CONFIG_FILE, "the method.json of a saved method")["backbone"]["name"]
    except (FileError, LookupError, TypeError) as error:
        raise AskError(f"{folder}: expected what save_pretrained writes ({error})") from error
    if backbone is None and not (isinstance(named, str) and named in known_backbones()):
        expected = f"expected one of {', '.join(known_backbones())}; say with --backbone which backbone it belongs to"
        raise AskError(f"{folder / CONFIG_FILE}: backbone.name: {expected}, found {named!r}")
    known: Benchmark = load_benchmark(load_edition(made_by if edition is None else edition))
    loaded = load_backbone(named if backbone is None else backbone, **options)
    return Assistant(Method.from_pretrained(folder, loaded, known, cache=False))


def _prefmoe(edition: Edition) -> PrefMoEMethod:
    """The edition's PrefMoE with most components."""
    found = [method for method in edition.methods.values() if isinstance(method, PrefMoEMethod)]
    if not found:
        raise AskError(f"edition {edition.name!r} has no PrefMoE; it has {', '.join(edition.methods)}")
    return max(found, key=lambda method: len(method.components))


def _adapter_folder(source: str | Path) -> Path:
    """The folder with an adapter's files, downloaded if need be."""
    path = expanded(source)
    for folder in (path, path / METHOD_FOLDER):
        if (folder / CONFIG_FILE).is_file():
            return folder
    with suppress(ValueError):
        if not path.exists():
            return folder_of(source, revision=None)
    raise AskError(
        f"{source}: expected a folder with {CONFIG_FILE} (such as method/ of a finished run), a hub repository "
        f"owner/name, or a backbone: {', '.join(known_backbones())}{did_you_mean(str(source), known_backbones())}"
    )


def _made_by(folder: Path) -> Any:
    """What run.json names as the edition whose run left an adapter behind; mini where it names none, or the adapter is
    in no run's folder. Raises AskError if run.json or the adapter is not as the run left it."""
    run = folder.absolute().parent
    if folder.absolute().name != METHOD_FOLDER or not (run / RUN_FILE).is_file():
        return DEFAULT_EDITION
    try:
        saved = [name for name in read_story(run)["files"] if name.startswith(f"{METHOD_FOLDER}/")]
        return verify(run, saved).get("edition", DEFAULT_EDITION)
    except RunFileError as error:
        raise AskError(str(error)) from error


def _example(index: int, user: str, question: str, picture: Path, options: tuple[str, ...] = ()) -> Example:
    """A question that nobody has answered."""
    return Example(
        index=index, name=user, category="recognition", l2_category="inconsistency" if options else "awareness",
        concept="", target="", question=question, options=options, answer=0 if options else 4, image=picture,
        semantic_invert=False, bucket_names=(),
    )  # fmt: skip


def _check_file(picture: str | Path) -> None:
    """Raises AskError if a picture is given as something else than its file."""
    if not isinstance(picture, str | Path):
        raise AskError(f"expected the file of a picture, found {type(picture).__name__}; save it as a file first")


def _check_words(what: str, text: Any) -> None:
    """Raises AskError unless it is text that can be written: half of a surrogate pair cannot."""
    if not isinstance(text, str):
        raise AskError(f"{what}: expected words, found {text!r:.80}")
    if half := next((mark for mark in text if "\ud800" <= mark <= "\udfff"), None):
        raise AskError(f"{what}: expected words, found {half!r}, which is half a character")


def _check_tastes(name: str, tastes: Mapping[str, Sequence[str]]) -> None:
    """Raises AskError unless it is lists of items by facet."""
    if not isinstance(tastes, Mapping):
        raise AskError(f"{name}: expected items by facet, such as {{'travel': ['camping']}}, found {tastes!r}")
    for facet, items in tastes.items():
        if facet not in FACETS:
            raise AskError(
                f"{name}: facet {facet!r} is unknown, expected one of {', '.join(FACETS)}{did_you_mean(facet, FACETS)}"
            )
        if isinstance(items, str) or not isinstance(items, Sequence):
            raise AskError(f"{name}, {facet}: expected a list of items, found {items!r}")
        for item in items:
            _check_item(name, facet, item)


def _check_item(name: str, facet: str, item: str) -> None:
    _check_words(f"{name}, {facet}, item", item)
    try:
        items = prompts.split_items(item)
    except ValueError as error:
        raise AskError(f"{name}, {facet}: {error}") from error
    if items != (item,):
        raise AskError(f"{name}, {facet}: {item!r} would read as several items; give them one by one")


def device_options(device: str, dtype: str) -> dict[str, Any]:
    """`load_backbone`'s options from words of a command line."""
    return {"device": device, "dtype": getattr(torch, dtype)}
