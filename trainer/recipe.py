"""A recipe fixes a whole training run: model, data, terms, optimisation. TOML in, one checked and fully resolved object
out.

A file may name another, `extends = "NAME or FILE"`, whose keys it overlays table by table; a list of terms replaces the
other whole. Unknown keys are errors. The resolved recipe, presets and defaults filled in, is saved with the run, and
its digest decides whether a run may be resumed.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from cache.errors import ConfigError
from cache.files import digest_of
from models.build import resolve_config
from models.config import Config, parse_config
from models.import_path import IMPORT_PATH
from trainer.augment import BevAugmentConfig, ImageAugmentConfig
from trainer.epoch_order import OrderConfig
from trainer.inherit import Scheme
from trainer.metrics import STEP_KEYS
from trainer.past import PastConfig
from trainer.terms import RELABELS, Schedule, Spec, needs_by_term, parse_options

# Keys of [train] about how a run is looked at, which change nothing of what it learns.
WATCHING = (
    *("log_every", "checkpoint_every", "keep", "tensorboard", "best_by"),
    *("validate_every", "validate_unit", "validate_frames", "validate_split"),
)
RECIPES = Path(__file__).parent / "recipes"


class DataConfig(Config):
    """split: of the frame store; teacher: name of the teacher store of every term that names none itself, "" for none;
    depth: LiDAR depth labels for camera models; unlabelled_per_labelled: unlabelled frames in an epoch for each
    labelled one, drawn anew every epoch (all there are, where that is more); 0: labelled frames only; past: the earlier
    moments that a temporal model is shown; order: see `trainer.epoch_order`.
    """

    split: str = "train"
    teacher: str = ""
    depth: bool = True
    unlabelled_per_labelled: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    order: OrderConfig = OrderConfig()
    bev_augmentation: BevAugmentConfig = BevAugmentConfig()
    image_augmentation: ImageAugmentConfig = ImageAugmentConfig()
    past: PastConfig = PastConfig()


class TrainConfig(Config):
    """epochs or steps: one of the two; batch: frames a step, of all ranks together; micro_batch: at most so many of
    them at a time on a rank, 0 for no limit; lr: the peak, reached after warmup_steps (cosine) or at 40 % of the run
    (one_cycle); min_lr_factor: of lr, at the end; clip: gradient norm, 0 for none; ema: decay, 0 for none.

    backbone_weights: a file for a camera model's ResNet to begin from, read at every start of the run; init_from: a
    teacher whose weights the student begins with, by init_scheme, where they fit (`trainer.inherit`): `demo`, or a file
    written by `train`, read at every start of the run, after backbone_weights.

    frozen: parts of the model that are not trained, by name (`backbone.layer1`), their batch norms in evaluation mode;
    freeze_bn: batch norms in evaluation mode; sync_bn: their statistics are of all ranks' frames; compile: the model
    through torch.compile; deterministic: the same bits again on a GPU too, slower.

    validate_every: steps, or epochs, from one validation to the next, 0 for none; validate_frames: about so many of the
    split's key frames, evenly, 0 for all; validate_split: "" for val or mini_val; best_by: the figure that chooses
    best.safetensors; tensorboard: write event files too; keep: checkpoints that stay. None of these changes what is
    learned.

    digest: what the digests of steps in the log cover, `keys` (tokens and augmentations) or `inputs` as well.
    """

    epochs: int | None = Field(default=None, ge=1)
    steps: int | None = Field(default=None, ge=1)
    batch: int = Field(default=4, ge=1)
    micro_batch: int = Field(default=0, ge=0)
    frozen: tuple[str, ...] = ()
    freeze_bn: Literal["none", "backbone", "all"] = "none"
    sync_bn: bool = False
    lr: float = Field(gt=0)
    weight_decay: float = Field(default=0.01, ge=0)
    backbone_lr_factor: float = Field(default=1.0, ge=0)
    schedule: Literal["cosine", "one_cycle"] = "cosine"
    warmup_steps: int = Field(default=50, ge=0)
    min_lr_factor: float = Field(default=0.001, ge=0, le=1)
    clip: float = Field(default=35.0, ge=0)
    precision: Literal["bf16", "fp32"] = "bf16"
    ema: float = Field(default=0.0, ge=0, lt=1)
    backbone_weights: str = ""
    init_from: str = ""
    init_scheme: Scheme = "fnav2"
    compile: bool = False
    deterministic: bool = False
    seed: int = Field(default=0, ge=0, lt=2**63)  # torch takes no more
    log_every: int = Field(default=10, ge=1)
    checkpoint_every: int = Field(default=500, ge=1)
    keep: int = Field(default=2, ge=1)
    validate_every: int = Field(default=0, ge=0)
    validate_unit: Literal["steps", "epochs"] = "steps"
    validate_frames: int = Field(default=0, ge=0)
    validate_split: str = ""
    best_by: Literal["NDS", "mAP"] = "NDS"
    tensorboard: bool = False
    digest: Literal["keys", "inputs"] = "keys"

    @model_validator(mode="after")
    def _one_length(self) -> TrainConfig:
        if (self.epochs is None) == (self.steps is None):
            raise ValueError("set exactly one of epochs and steps")
        return self

    @model_validator(mode="after")
    def _norms_one_way(self) -> TrainConfig:
        if self.sync_bn and self.freeze_bn == "all":
            raise ValueError("sync_bn has no norm left to work on where freeze_bn = 'all': drop one of the two")
        return self

    @model_validator(mode="after")
    def _scheme_of_something(self) -> TrainConfig:
        if self.init_scheme != "fnav2" and not self.init_from:
            raise ValueError("init_scheme says how init_from is read: set init_from too, or drop init_scheme")
        return self


class TermConfig(Config):
    """One distillation loss of the run. schedule: how its weight rises and falls, see `trainer.terms.schedule`; key: of
    a term that stands more than once: log and checkpoints call it NAME_KEY; teacher: the name of its teacher store, ""
    for that of the data; callable: the import path of a term of one's own (`trainer.terms.imported`), "" for the
    shipped one of this name."""

    name: str = Field(pattern="^[a-z0-9][a-z0-9_]{0,47}$")
    callable: str = Field(default="", pattern=f"^({IMPORT_PATH})?$")
    key: str = Field(default="", pattern="^([a-z0-9][a-z0-9_]{0,31})?$")
    teacher: str = ""
    weight: float = Field(default=1.0, ge=0, allow_inf_nan=False)
    schedule: Schedule = Schedule()
    options: dict[str, Any] = Field(default_factory=dict)

    @property
    def known_as(self) -> str:
        """What log, checkpoints and errors call it. No key can make it the name of another term or of a part of a
        detector's loss, since it begins with its own."""
        return f"{self.name}_{self.key}" if self.key else self.name

    @model_serializer(mode="wrap")
    def _as_before(self, serialise: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without the three keys where they are not set: recipes from before them keep their digest, and their
        checkpoints can be resumed."""
        values: dict[str, Any] = serialise(self)
        return {key: value for key, value in values.items() if value or key not in ("key", "teacher", "callable")}


class Recipe(Config):
    """model: a full detector config, as `models.build.resolve_config` gives it."""

    name: str
    model: dict[str, Any]
    data: DataConfig = DataConfig()
    train: TrainConfig
    terms: tuple[TermConfig, ...] = ()

    def term_specs(self) -> list[Spec]:
        """Every term, its teacher named."""
        return [
            Spec(term.name, term.weight, term.options, term.known_as, self.teacher_of(term), term.callable)
            for term in self.terms
        ]

    def teacher_of(self, term: TermConfig) -> str:
        """The name of the store that a term reads, "" where the recipe names none."""
        return term.teacher or self.data.teacher

    def teachers(self) -> list[str]:
        """Names of all teacher stores of the run, each once."""
        return list(dict.fromkeys(filter(None, [self.data.teacher, *map(self.teacher_of, self.terms)])))

    def to_dict(self) -> dict[str, Any]:
        """Plain values for `recipe.json`."""
        return self.model_dump(mode="json")

    def trained(self) -> dict[str, Any]:
        """What of `to_dict` decides about the weights: a run may go on with the rest changed."""
        values = self.to_dict()
        return {**values, "train": {key: value for key, value in values["train"].items() if key not in WATCHING}}

    @property
    def digest(self) -> str:
        """Hex digest of everything that the recipe fixes."""
        return digest_of(self.to_dict())


def recipe_names() -> list[str]:
    """The recipes that ship."""
    return sorted(path.stem for path in RECIPES.glob("*.toml"))


def load_recipe(name_or_path: str | Path, overrides: Mapping[str, Any] | None = None) -> Recipe:
    """A shipped recipe by name, a TOML file, or a run's recipe.json; `overrides` are laid over it table by table.

    Raises ConfigError, one line: the file, the key, and what is allowed there.
    """
    path = _path_of(name_or_path, Path())
    return make_recipe(_overlay(_values_of(path, ()), overrides or {}), str(path), path.stem)


def _path_of(name_or_path: str | Path, beside: Path) -> Path:
    """The file of a shipped recipe's name, or of a path, which is relative to `beside`."""
    if str(name_or_path) in recipe_names():
        return RECIPES / f"{name_or_path}.toml"
    return beside / name_or_path


def _values_of(path: Path, below: tuple[Path, ...]) -> dict[str, Any]:
    """A file's values, laid over those of the recipe it extends; below: the files that extend this one."""
    try:
        text = path.read_text()
        values = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except (FileNotFoundError, IsADirectoryError):
        extended = f"{below[-1]} extends {path}, but " if below else ""
        raise ConfigError(
            f"{extended}recipe {str(path)!r}: no such file, and not one of the shipped recipes "
            f"{', '.join(recipe_names())}"
        ) from None
    except ValueError as error:  # of either parser, or of text that is none
        raise ConfigError(f"{path}: not {'JSON' if path.suffix == '.json' else 'TOML'} ({error})") from None
    base = values.pop("extends", None)
    if base is None:
        return values
    if not isinstance(base, str):
        raise ConfigError(f"{path}: extends = {base!r}, expected the name of a shipped recipe or a path")
    under = _path_of(base, path.parent)
    chain = (*below, path)
    if under.resolve() in {file.resolve() for file in chain}:
        raise ConfigError(f"{path}: it extends {base!r}, which extends it; drop one of the two")
    found = _values_of(under, chain)
    found.pop("name", None)
    return _overlay(found, values)


def make_recipe(values: Mapping[str, Any], where: str, name: str) -> Recipe:
    """A recipe of plain values; `where` stands in front of errors, `name` is used where the values have none."""
    recipe = parse_config(Recipe, {"name": name, **values}, where)
    try:
        model = resolve_config(recipe.model)
    except ConfigError as error:
        raise ConfigError(f"{where}: [model]: {error}") from None
    terms = tuple(
        term.model_copy(
            update={
                "options": parse_options(term.name, term.options, where, term.callable).model_dump(mode="json"),
            }
        )
        for term in recipe.terms
    )
    _check_terms(recipe, where)
    if recipe.data.past != PastConfig() and int(model.get("queue", 1)) < 2:
        raise ConfigError(f"{where}: [data.past] is for temporal models: set [model] queue above 1, or leave it out")
    if lacking := [term.known_as for term in terms if not recipe.teacher_of(term)]:
        raise ConfigError(
            f"{where}: term {lacking[0]} needs a teacher store; set [data] teacher, or the term's own, to its name"
        )
    return recipe.model_copy(update={"model": model, "terms": terms})


def _check_terms(recipe: Recipe, where: str) -> None:
    """ConfigError for terms that cannot be told apart, for a weight or schedule where nothing is weighed, and for a
    term that augmentation contradicts."""
    names = [term.known_as for term in recipe.terms]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(
                f"{where}: term {name} stands {names.count(name)} times in {', '.join(names)}; give all but one a key "
                'of their own, such as key = "far"'
            )
    for term in recipe.terms:
        if term.known_as in STEP_KEYS:
            raise ConfigError(f"{where}: term {term.known_as}: the log has a key of that name; give it another one")
        if term.name in RELABELS and (term.weight, term.schedule) != (1.0, Schedule()):
            raise ConfigError(
                f"{where}: term {term.known_as} changes labels and adds no loss: leave out its weight and schedule"
            )
    needs = needs_by_term(recipe.term_specs())
    for name, need in needs.items():
        if need.unaugmented and recipe.data.bev_augmentation != BevAugmentConfig():
            raise ConfigError(
                f"{where}: term {name} compares cell-relative values as they are: switch off [data.bev_augmentation], "
                "or choose its moved form"
            )


def _overlay(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`over` laid on `base`, tables merged, all else replaced."""
    out = dict(base)
    for key, value in over.items():
        out[key] = (
            _overlay(out[key], value) if isinstance(value, Mapping) and isinstance(out.get(key), Mapping) else value
        )
    return out
