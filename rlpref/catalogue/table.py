"""What the registry says of each loss, as rows and as docs/losses.md."""

from __future__ import annotations

import inspect
import sys
from dataclasses import dataclass
from itertools import groupby

from rlpref.losses import LOSSES, Entry
from rlpref.losses.inputs import PairLogps
from rlpref.losses.modifiers import APART, READS, Modifiers, refusals
from rlpref.losses.registry import Bound, columns_read, describe, make_loss

FAMILIES = {  # by the file a loss stands in; a new file is a family of its own name
    "pairs": "pairs: the margin",
    "anchored": "pairs: each log-ratio",
    "scored": "pairs: scores, minibatches",
    "reference_free": "pairs: no reference",
    "unpaired": "single answers",
    "lists": "K answers",
    "rewards": "reward models",
    "rollouts": "policy gradient: tokens",
    "whole_answers": "policy gradient: answers",
}
MODIFIERS = [name for name in inspect.signature(Modifiers).parameters if name in READS]
SOME_BETA = 0.5


@dataclass(frozen=True)
class Row:
    """One loss, as words."""

    name: str
    family: str
    papers: str
    hyperparameters: str
    data: str
    reads: str  # columns beyond the log-probs themselves
    optimum: str  # whether its population optimum is the KL-regularised one
    minibatch: str


def ordered() -> list[Entry]:
    """All entries, family by family, in the order of their files."""
    places = {family: index for index, family in enumerate(FAMILIES)}
    return sorted(LOSSES.values(), key=lambda entry: places.get(module(entry), len(places)))


def module(entry: Entry) -> str:
    return entry.function.__module__.rpartition(".")[2]


def family(entry: Entry) -> str:
    return FAMILIES.get(module(entry), module(entry).replace("_", " "))


def at_defaults(entry: Entry) -> Bound:
    """The loss as the table and the pictures show it."""
    return make_loss(entry.name, **entry.at(SOME_BETA))


def reads(entry: Entry) -> frozenset[str]:
    return columns_read(at_defaults(entry), entry.takes)


def row(entry: Entry) -> Row:
    required = inspect.Parameter.empty
    hyperparameters = [
        name if p.default is required else f"{name}={p.default}" for name, p in entry.hyperparameters.items()
    ]
    plain = {"chosen", "rejected", "logps", "old_logps", "advantages", "mask", "present", "label", "rewards"}
    return Row(
        entry.name,
        family(entry),
        ", ".join(entry.papers) or "-",
        ", ".join(hyperparameters) or "-",
        entry.data,
        ", ".join(sorted(_short(reads(entry) - plain))) or "-",
        "KL-regularised" if entry.kl_optimal else "-",
        "as a whole" if entry.coupled else entry.reduce.replace("_", " ").replace("example", "any split"),
    )


def _short(columns: frozenset[str]) -> set[str]:
    """chosen_len and rejected_len are `len`, ref_chosen is `ref`, and so on."""
    return {"ref" if c.startswith("ref_") else c.removeprefix("chosen_").removeprefix("rejected_") for c in columns}


def details(entry: Entry) -> str:
    """One loss in full, as Markdown."""
    facts = row(entry)
    lines = [f"### {entry.name}", "", inspect.cleandoc(entry.function.__doc__), ""]
    claims = {
        "hyperparameters": facts.hyperparameters,
        "takes": f"{facts.data}; reads {facts.reads}" if facts.reads != "-" else facts.data,
        "at policy == reference": f"`{entry.at_ref}`" if entry.at_ref else "",
        "a constant added to the log-ratios of a prompt": "cancels" if entry.shift_invariant else "",
        "population optimum on Bradley-Terry labels": "the KL-regularised one" if entry.kl_optimal else "",
        "minibatch": "taken as a whole: it may not be split" if entry.coupled else "",
        "reduced by": facts.minibatch if entry.reduce != "example" else "",
    }
    lines += [f"- {name}: {value}" for name, value in claims.items() if value and value != "-"]
    return "\n".join(lines)


def markdown(rows: list[list[str]], header: list[str]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def page() -> str:
    """docs/losses.md."""
    entries = ordered()
    parts = [
        HEAD.format(count=len(entries)),
        "## All",
        markdown(text(), COLUMNS),
    ]
    for name, members in groupby(entries, key=family):
        members = list(members)
        story = inspect.cleandoc(sys.modules[members[0].function.__module__].__doc__ or "")
        picture = f"![Shapes of the losses in this family](losses/{module(members[0])}.png)"
        parts += [f"## {name[0].upper()}{name[1:]}", story, picture, *map(details, members)]
    parts += [
        "## Modifiers",
        MODIFIERS_HEAD,
        inspect.cleandoc(Modifiers.__doc__),
        modifier_table(),
        "Two of them together:",
        apart_table(),
    ]
    return "\n\n".join(parts) + "\n"


def modifier_table() -> str:
    """Which modifier goes with which pair loss at its defaults; a refusal says why."""
    reasons: list[str] = []
    rows = []
    for entry in ordered():
        if entry.takes is PairLogps:
            refused = refusals(entry, at_defaults(entry))
            found = [refused.get(name) for name in MODIFIERS]
            reasons += [reason for reason in dict.fromkeys(found) if reason and reason not in reasons]
            rows.append([entry.name, *("yes" if r is None else f"no ({reasons.index(r) + 1})" for r in found)])
    notes = "\n".join(f"{number}. the loss {reason}" for number, reason in enumerate(reasons, 1))
    return f"{markdown(rows, ['loss', *MODIFIERS])}\n\n{notes}"


def apart_table() -> str:
    return markdown([[one, other, reason] for one, other, reason in APART], ["modifier", "not with", "because"])


COLUMNS = ["loss", "family", "paper", "hyperparameters", "data", "also reads", "optimum", "minibatch"]
HEAD = """<!-- Written by `rlpref-losses --write docs` from the registry's docstrings; tests/catalogue reads it. -->
# Losses

{count} losses. Those on pairs, single answers and K answers train a policy: `rlpref algorithm=NAME`, and the pair
losses on fresh pairs, too: `rlpref algorithm=iterative_dpo algorithm/loss=NAME`. A hyperparameter without a value is
the run's `beta`. In the pictures the black line is the loss; blue and orange (right axis) are how hard its gradient
pushes the better answer up and the worse one down, per nat, as the margin between them grows (beta 0.5 where the loss
has no default). Of single answers the picture has the desirable one, of policy gradients an answer of one token with
advantage 1, over log pi/ref and log pi/old.

In the table `data` is what a loss takes; one of single answers takes a pair as two. `optimum` says whether its
minimum over all policies is the KL-regularised one at the run's beta; where all others go is in
experiments/README.md (`loss_optima`). `minibatch` is how a minibatch may be cut ("as a whole": not at all), and for
policy gradients how tokens are averaged; these train on groups of answers: `rlpref algorithm=dr_grpo
algorithm/loss=NAME`. No algorithm asks for `reward lists` yet."""
MODIFIERS_HEAD = """`algorithm.modifiers.NAME=...` lays these over any pair loss where the table says yes; anything else
is refused by name before a model is loaded. Per-example weights of the data (`weight`) go with every loss that does not
take its minibatch as a whole."""


def text() -> list[list[str]]:
    """The rows of the table."""
    return [list(vars(row(entry)).values()) for entry in ordered()]


def shown(name: str) -> str:
    """One loss in full, for a terminal."""
    entry = LOSSES[name]
    return f"{details(entry)}\n- as shown in the pictures: {describe(entry.at(SOME_BETA)) or 'defaults'}\n"
