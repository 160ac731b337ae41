"""The configurations of the losses, which nobody writes, as a place that Hydra searches."""

from __future__ import annotations

from typing import ClassVar

from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.object_type import ObjectType
from hydra.core.plugins import Plugins
from hydra.plugins.config_source import ConfigResult, ConfigSource
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import OmegaConf

from rlpref import loss_configs


class LossConfigs(ConfigSource):
    """The configurations that nobody writes, as a place that Hydra searches. Hydra's own store of configurations would
    do, but it is copied whole for each one that is composed."""

    made: ClassVar[dict[str, dict]] = {f"{group}/{option}": node for group, option, node in loss_configs.configs()}

    @staticmethod
    def scheme() -> str:
        return "losses"

    def available(self) -> bool:
        return True

    def is_config(self, config_path: str) -> bool:
        return config_path.rstrip("/").removesuffix(".yaml") in self.made

    def is_group(self, config_path: str) -> bool:
        return config_path.strip("/") in {"", *(parent for path in self.made for parent in _parents(path))}

    def list(self, config_path: str, results_filter: ObjectType | None) -> list[str]:
        inside = "" if config_path in ("", "/") else f"{config_path.strip('/')}/"
        names = {path.removeprefix(inside).split("/")[0] for path in self.made if path.startswith(inside)}
        kinds = {ObjectType.GROUP: self.is_group, ObjectType.CONFIG: self.is_config}
        wanted = [kinds[results_filter]] if results_filter else list(kinds.values())
        return sorted(name for name in names if any(is_kind(inside + name) for is_kind in wanted))

    def load_config(self, config_path: str) -> ConfigResult:
        node = OmegaConf.create(self.made[config_path.removesuffix(".yaml")])
        return ConfigResult(provider=self.provider, path=self.full_path(), config=node, header={"package": None})


def _parents(path: str) -> list[str]:
    parts = path.split("/")
    return ["/".join(parts[:depth]) for depth in range(1, len(parts))]


class LossConfigsAreSearched(SearchPathPlugin):
    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        search_path.append("rlpref", f"{LossConfigs.scheme()}://")


for plugin in (LossConfigs, LossConfigsAreSearched):
    Plugins.instance().register(plugin)
