"""The plan of a comparison, and the runs that it stands for."""

from __future__ import annotations

import itertools
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import hydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from spending import spend, with_keys

import rlpref.train  # noqa: F401  the configurations of the losses, and the names of runs
from rlpref.binding import ConfigError, bind
from rlpref.check import check
from rlpref.jobs import Job
from rlpref.logging.folder import config_hash

CONF = Path(__file__).parents[1] / "conf"
OF_THE_PLAN = ("seed", "replicas", "algorithm", "experiment")  # what nobody sets beside it


@dataclass(frozen=True)
class Plan:
    """The section `compare`; conf/experiment/compare.yaml says what each is."""

    methods: list
    equal: Literal["labels", "samples", "steps"] | None
    amount: int | None
    kl: float | None
    kl_tolerance: float
    measure: Literal["reward", "proxy_reward"]
    grid: list
    grids: dict
    settings: dict
    tuning: list
    tuning_seeds: list
    seeds: list

    def check(self) -> None:
        """Raises ConfigError for a plan that would compare nothing, or report what was tuned on."""
        if (self.equal is None) != (self.amount is None):
            raise ConfigError("compare.equal and compare.amount are set together, or both null.")
        if self.equal is None and self.kl is None:
            raise ConfigError("nothing is equal: set compare.equal and compare.amount, or compare.kl.")
        for key in ("methods", "tuning_seeds", "seeds"):
            values = getattr(self, key)
            if not values or len(set(values)) < len(values):
                raise ConfigError(f"compare.{key} is {values}: one at least, and none twice.")
        if both := sorted({*self.tuning_seeds} & {*self.seeds}):
            raise ConfigError(f"compare.seeds and compare.tuning_seeds share {both}: a seed is tuned on or reported.")
        for key in ("grids", "settings"):
            if unknown := sorted({*getattr(self, key)} - {*self.methods}):
                raise ConfigError(f"compare.{key} names {unknown}, which compare.methods does not.")
        if len(points(self.tuning)) > 1:
            raise ConfigError(f"compare.tuning is {self.tuning}: one value for each key, no sweep.")
        self._check_keys()

    def _check_keys(self) -> None:
        """Raises ConfigError for a key that the plan sets itself and somebody sets beside it."""
        taken, tuned = {*OF_THE_PLAN}, {*points(self.tuning)[0]}
        for key in ("tuning", "grid", "grids", "settings"):
            items = getattr(self, key)
            keys = {_key(item) for item in (itertools.chain(*items.values()) if isinstance(items, dict) else items)}
            if wrong := sorted(keys & (taken if key == "tuning" else taken | tuned)):
                raise ConfigError(f"compare.{key} sets {wrong}, which the protocol sets itself: leave it out.")

    def grid_of(self, method: str) -> list[dict]:
        """The points of the method's grid. Raises ConfigError where it has more or fewer than the shared one."""
        own, shared = points(self.grids.get(method, self.grid)), points(self.grid)
        if len(own) != len(shared):
            raise ConfigError(
                f"compare.grids.{method} has {len(own)} points and compare.grid {len(shared)}: as many trials for each."
            )
        return own


@dataclass(frozen=True)
class Trial:
    """One run; `point` is the point of the grid that it takes, dotted key -> value."""

    method: str  # the option of the group `algorithm`
    point: dict
    seed: int
    job: Job


@dataclass(frozen=True)
class Comparison:
    plan: Plan
    folder: Path
    beta: float  # of the comparison as a whole
    methods: dict[str, DictConfig]  # option of the group `algorithm` -> its configuration, not resolved
    overrides: list[str]  # settings of all runs

    def tuning(self) -> list[Trial]:
        """Every method, point and tuning seed, checked. Raises ConfigError, naming the method."""
        where, only = self.folder / "tuning", points(self.plan.tuning)[0]
        seeds, methods = self.plan.tuning_seeds, self.plan.methods
        every = [
            self._trial(method, point, seed, where, only)
            for method in methods
            for point in self.plan.grid_of(method)
            for seed in seeds
        ]
        for trial in every[:: len(seeds)]:
            _named(trial.method, check, trial.job.config, trial.job.overridden)
            _named(trial.method, self._check_measure, trial.job.config["reward"])
        return every

    def finals(self, chosen: dict[str, dict]) -> list[Trial]:
        """Every method at its chosen point, with every final seed."""
        return [
            self._trial(method, point, seed, self.folder, {})
            for method, point in chosen.items()
            for seed in self.plan.seeds
        ]

    def name(self, method: str) -> str:
        """What the method is called in a report."""
        return str(self.methods[method].algorithm.name)

    def record(self) -> dict:
        """The plan as compare.json keeps it."""
        return asdict(self.plan) | {"beta": self.beta, "overrides": self.overrides}

    def _trial(self, method: str, point: dict, seed: int, where: Path, only: dict) -> Trial:
        config = _named(method, _resolved, self.methods[method], {**point, **only, "seed": seed})
        by_hand = [_key(item) for item in [*self.overrides, *self.plan.settings.get(method, [])]]
        config = _named(method, self._within_budget, config, by_hand, [*point, *only])
        name = f"{config['algorithm']['name']}-beta{config['beta']}-seed{seed}-{config_hash(config)}"
        return Trial(method, point, seed, Job(config, where / name, self.folder.name, (*by_hand, *point, *only)))

    def _within_budget(self, config: dict, by_hand: list[str], tried: list[str]) -> dict:
        """The configuration that spends the amount. At equal labels all are given the same pairs, also those methods
        that read nothing of them but the prompts. Raises ConfigError for a key set by hand that this would overwrite;
        of rounds and prompts together it keeps the shape."""
        if self.plan.equal is None:
            return config
        budget = spend(config, self.plan.equal, self.plan.amount)
        shape = {"algorithm.rounds", "algorithm.prompts_per_round"}
        shape = shape if shape <= {*budget} else set()
        if self.plan.equal == "labels" and config["data"]["source"] == "testbed":
            budget |= {"data.pairs": self.plan.amount}
        if wrong := sorted(({*budget} & {*tried}) | (({*budget} - shape) & {*by_hand})):
            raise ConfigError(f"compare.equal={self.plan.equal} sets {wrong} from compare.amount: leave it out.")
        return with_keys(config, budget)

    def _check_measure(self, reward: dict) -> None:
        scores = reward["kind"] in ("learned", "ensemble", "proxy") or reward.get("mode") == "pointwise"
        if self.plan.measure == "proxy_reward" and not scores:
            raise ConfigError(
                f"compare.measure 'proxy_reward' is what training scores with, and reward '{reward['kind']}' is no "
                "proxy: set compare.measure=reward, or reward=proxy, learned, ensemble or a judge of single answers."
            )


def read(overrides: list[str]) -> Comparison:
    """The comparison that these settings ask for. Raises ConfigError where it cannot be made as it is written."""
    given = {*map(_key, overrides)}
    if wrong := sorted(given & {*OF_THE_PLAN[:3]}):
        raise ConfigError(f"{wrong} belong to the protocol: set compare.methods, compare.seeds, compare.tuning_seeds.")
    experiment = [] if "experiment" in given else ["experiment=compare"]
    shared = _compose([*experiment, *overrides])
    if "compare" not in shared:
        raise ConfigError("the experiment has no section 'compare': conf/experiment/compare.yaml shows one.")
    plan = bind(Plan, OmegaConf.to_container(shared.compare, resolve=True), "compare")()
    plan.check()
    methods = {
        method: _named(
            method, _compose, [*experiment, f"algorithm={method}", *overrides, *plan.settings.get(method, [])]
        )
        for method in plan.methods
    }
    names = [str(config.algorithm.name) for config in methods.values()]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigError(f"several of compare.methods are called {twice}: set algorithm.name in compare.settings.")
    of_runs = [item for item in overrides if not item.startswith(("compare.", "hydra.", "logger."))]
    return Comparison(plan, Path(shared.hydra.sweep.dir), float(shared.beta), methods, of_runs)


def points(grid: list[str]) -> list[dict]:
    """['a=1,2', 'b=x'] -> [{'a': 1, 'b': 'x'}, {'a': 2, 'b': 'x'}]; Hydra's grammar of sweeps, of plain settings."""
    axes = {}
    for text in grid:
        try:
            override = OverridesParser.create().parse_override(text)
        except HydraException as error:
            raise ConfigError(f"compare: '{text}' is no setting=value,value: {' '.join(str(error).split())}") from error
        several = override.is_sweep_override()
        axes[override.key_or_group] = (
            [
                OverridesParser.create().parse_override(f"x={value}").value()
                for value in override.sweep_string_iterator()
            ]
            if several
            else [override.value()]
        )
    return [dict(zip(axes, values)) for values in itertools.product(*axes.values())]


def _key(item: str) -> str:
    return item.split("=")[0].lstrip("+~")


def _compose(overrides: list[str]) -> DictConfig:
    try:
        with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
            return hydra.compose("train", overrides, return_hydra_config=True)
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(str(error)) from error


def _resolved(composed: DictConfig, settings: dict) -> dict:
    """Plain values of a run, with these settings in place."""
    config = composed.copy()
    OmegaConf.set_readonly(config, False)
    for key, value in settings.items():
        if OmegaConf.select(config, key) is None and key not in _keys(config):
            raise ConfigError(f"'{key}' is no plain setting of a run; other files of a group are chosen for all runs.")
        OmegaConf.update(config, key, value)
    kept = OmegaConf.create({key: config._get_node(key) for key in config if key not in ("hydra", "compare")})
    return OmegaConf.to_container(kept, resolve=True, throw_on_missing=True)


def _keys(config: DictConfig) -> set[str]:
    """Dotted keys of a configuration, those that are null too."""
    found = set()
    for section in config:
        node = config._get_node(section)
        inner = node if isinstance(node, DictConfig) else {}
        found |= {section, *(f"{section}.{key}" for key in inner)}
    return found


def _named(method: str, function, *arguments):
    """What the function returns; its ConfigError says of which method it speaks."""
    try:
        return function(*arguments)
    except (ConfigError, OmegaConfBaseException) as error:
        raise ConfigError(f"compare.methods, '{method}': {error}") from error
