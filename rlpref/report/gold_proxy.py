"""The section on over-optimisation: what training scores with against what is wanted, as KL grows."""

from __future__ import annotations

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from rlpref.report.envelopes import START
from rlpref.report.figures import KL_LABEL
from rlpref.report.frames import Sweep
from rlpref.report.gao import FORMS, Form, better_form, fit_gao
from rlpref.report.lines import best_of_n
from rlpref.report.panels import numbered, problems
from rlpref.report.section import Chart, Point, Section, Table
from rlpref.report.style import RC, Look, legend, legend_height, root_scale
from rlpref.report.tables import interval_text, text

BEST = "best of n"  # of the reference: a row beside the methods
WRITTEN: dict[Form, str] = {"best_of_n": "d (a - b d)", "rl": "d (a - b log d)"}
KEYS = ["method", "beta", "setting", "step"]


def section(sweep: Sweep) -> Section | None:
    """None where no finished run that was evaluated by gold trained on another reward."""
    found = [(title, rows) for title, history in problems(sweep, ("kl", "reward")) if len(rows := gains(history))]
    if not found:
        return None
    tables, charts = [], []
    for end, _, title, rows in numbered(found):
        fits = fit_rows(rows)
        tables.append(Table(f"over_optimisation{end}", fits, _table_caption(title), _shown(fits)))
        charts.append(_chart(f"gold_and_proxy{end}", title, rows, fits))
    return Section("Gold reward and what training scores with", tables=tuple(tables), charts=tuple(charts))


def gains(history: pd.DataFrame) -> pd.DataFrame:
    """Of each evaluation of finished runs that train on a proxy, what gold and proxy reward gained over the run's own
    first evaluation, when it is the reference: run, method, beta, setting, seed, step, kl, gold, proxy. Then the best
    of n of the reference, picked by the proxy, at its largest possible KL; `step` is n."""
    if "eval/proxy_reward" not in history:
        return history.iloc[:0]
    rows = history[history["done"] & history["eval/proxy_reward"].notna()].sort_values(["run", "steps"], kind="stable")
    start = rows.groupby("run").transform("first")
    for gain, name in (("gold", "reward"), ("proxy", "eval/proxy_reward")):
        rows[gain] = rows[name] - start[name]
    kept = rows.loc[start["kl"] < START, ["run", *KEYS, "seed", "kl", "gold", "proxy"]]
    best, _ = best_of_n(rows)
    if "score" not in best or best["score"].isna().all() or kept.empty:
        return kept
    gain = {"gold": best["reward"] - best["reward"].iloc[0], "proxy": best["score"] - best["score"].iloc[0]}
    return pd.concat([kept, best[["kl"]].assign(**gain, method=BEST, step=best["n"], setting="")], ignore_index=True)


def fit_rows(rows: pd.DataFrame) -> pd.DataFrame:
    """Both forms fitted to the gold gains of each method: method, form, alpha, beta with _low and _high, r2, rmse,
    peak_kl (nats; NaN where the form has none between the KLs that were evaluated), seeds (of the interval; 0: over the
    points), better (the form with the smaller error), better_in and of (seeds)."""
    table = []
    for method, own in rows.groupby("method", sort=False):
        seeds = own["seed"].astype("Int64").fillna(-1).astype(int)
        moved = own.loc[own["kl"] > START, "kl"]
        better, count, of = better_form(own["kl"], own["gold"], seeds)
        for form in FORMS:
            fit = fit_gao(own["kl"], own["gold"], form, seeds)
            row = {"method": method, "form": form}
            for name, value in (("alpha", fit.alpha), ("beta", fit.beta)):
                row |= {name: value.mean, f"{name}_low": value.low, f"{name}_high": value.high}
            peak = fit.peak if moved.min() <= fit.peak <= moved.max() else np.nan
            row |= {"r2": fit.r2, "rmse": fit.error, "peak_kl": peak, "seeds": fit.seeds}
            table.append(row | {"better": better or "", "better_in": count, "of": of})
    return pd.DataFrame(table)


def _table_caption(title: str) -> str:
    start = f"{title}: gold" if title else "Gold"
    return (
        f"{start} reward gained over the reference, R(d) with d = sqrt(KL): that of the forms d (a - b d) and "
        "d (a - b log d) of Gao et al. 2023 that fits a method's evaluations better, by least squares. a, b: 95% over "
        "seeds, or where marked * over points as if independent, which is too narrow. Error: root mean square, in "
        "units of the gold reward. Where both R2 are alike, no form is to be preferred."
    )


def _shown(fits: pd.DataFrame) -> pd.DataFrame:
    """A row per method: the form with the smaller error over all points, beside the R2 of the other."""
    rows = []
    for method, both in fits.groupby("method", sort=False):
        fit, other = both.sort_values("rmse", kind="stable").to_dict("records")
        row = {"method": method, "form": WRITTEN[fit["form"]]}
        for short, name in (("a", "alpha"), ("b", "beta")):
            value = interval_text(*(fit[f"{name}{end}"] for end in ("", "_low", "_high")), 3)
            row[short] = value if value == "-" or fit["seeds"] else f"{value}*"
        row |= {"R2": text(fit["r2"]), "R2 of the other form": text(other["r2"]), "error": text(fit["rmse"])}
        seeds = fit["better_in"] if fit["better"] == fit["form"] else fit["of"] - fit["better_in"]
        better = f"{seeds} of {fit['of']} seeds" if fit["better"] else "-"
        rows.append(row | {"peak at KL": text(fit["peak_kl"]), "better in": better})
    return pd.DataFrame(rows)


def _chart(name: str, title: str, rows: pd.DataFrame, fits: pd.DataFrame) -> Chart:
    methods = rows[rows["method"] != BEST]
    look = Look.of(methods["method"], methods["beta"], methods["setting"])
    largest = 1.04 * max(rows["kl"].max(), START)
    cells = [(key, cell) for key, cell in methods.groupby(["method", "beta", "setting"], dropna=False, sort=False)]
    with mpl.rc_context(RC):
        figure = Figure(figsize=(10.4, max(3.9, legend_height(look, 2))), layout="constrained")
        axes = figure.subplots(1, 2)
        points = []
        for axis, side in zip(axes, ("proxy", "gold")):
            for (method, beta, setting), cell in cells:
                points += _path(axis, cell, side, look, (method, beta, setting))
            best = rows[rows["method"] == BEST]
            axis.plot(best["kl"], best[side], color="black", marker="*", ms=6, lw=1.1 if side == "proxy" else 0)
            axis.axhline(0, color="0.5", lw=0.6)
            root_scale(axis, "x", largest)
            axis.set_xlabel(KL_LABEL)
        _draw_fits(axes[1], fits, rows, look)
        axes[0].set(title=title, ylabel="gain in the reward trained on")
        axes[1].set_ylabel("gain in gold reward")
        extra = [Line2D([], [], color="0.3", lw=1.2, ls=(0, (4, 2)), label="fit of the smaller error")]
        extra += [Line2D([], [], color="black", marker="*", ls="", ms=7, label="best of n")] * bool(len(best))
        legend(figure, look, extra, markers=True)
    caption = (
        "Reward gained over the reference against KL, in roots: that which training scores with, and gold. Means "
        "over seeds at each evaluation; dashed: the form of Gao et al. 2023 with the smaller error, over all betas."
    )
    return Chart(name, figure, caption, tuple(points))


def _path(axis: Axes, cell: pd.DataFrame, side: str, look: Look, key: tuple[str, float, str]) -> list[Point]:
    method, beta, setting = key
    steps = [rows for _, rows in cell.groupby("step")]
    most = max(len(rows) for rows in steps)
    means = pd.DataFrame(
        [{**rows[["kl", "gold", "proxy"]].mean(), "step": rows["step"].iloc[0]} for rows in steps if len(rows) == most]
    )
    colour, (edge, marker) = look.colour(method, beta), look.styles[method]
    axis.plot(means["kl"], means[side], color=colour, lw=0.8 * (side == "proxy"), ls=look.lines[setting], alpha=0.8)
    axis.plot(means["kl"], means[side], ls="", marker=marker, ms=4, mfc=colour, mec=edge, mew=0.5)
    where = ", ".join(part for part in (f"β {text(beta)}", setting) if part)
    says = f"{method}\n{where}, step {{step:.0f}}\nKL {{kl:.3g}} nats\ngold {{gold:+.3g}}, trained on {{proxy:+.3g}}\n"
    says += "1 run" if most == 1 else f"mean of {most} runs"
    run = cell["run"].iloc[0]
    return [Point(axis, row["kl"], row[side], says.format(**row), run) for row in means.to_dict("records")]


def _draw_fits(axis: Axes, fits: pd.DataFrame, rows: pd.DataFrame, look: Look) -> None:
    """Of each method the form with the smaller error."""
    for method, own in fits.groupby("method", sort=False):
        best = own.sort_values("rmse").iloc[0]
        if np.isnan(best["rmse"]):
            continue
        moved = rows.loc[(rows["method"] == method) & (rows["kl"] > START), "kl"]
        d = np.linspace(np.sqrt(moved.min()), np.sqrt(moved.max()), 100)  # where it was fitted
        bend = d if best["form"] == "best_of_n" else np.log(d)
        colour = "black" if method == BEST else look.styles[str(method)][0]
        axis.plot(d**2, d * (best["alpha"] - best["beta"] * bend), color=colour, lw=1.2, ls=(0, (4, 2)), zorder=3)
