"""The sentences that head a report: which generator is best on what, and at which cost."""

from collections import defaultdict
from collections.abc import Iterable, Sequence

from reports.quantities import QUANTITIES
from reports.records import Record
from reports.tables import Sheet, best_in_column, compute_sheet, quality_sheet

CHEAPER_BY = 2.0
"""A rival is worth a sentence when it costs at most the best one's cost divided by this ..."""
CLOSE_WITHIN = 2.0
"""... and its FID is at most the best one's multiplied by this."""

_FRACTIONS = {
    2: "half",
    3: "a third",
    4: "a quarter",
    5: "a fifth",
    10: "a tenth",
    20: "a twentieth",
    50: "a fiftieth",
    100: "a hundredth",
}


def headline(records: Iterable[Record]) -> tuple[str, ...]:
    """Say in a few sentences what the quality records of one protocol show; the first says most.

    Records measured under different protocols, features or references raise ValueError.
    """
    everything = tuple(records)
    sheet = quality_sheet(everything)
    sentences = [
        *_on_fid(sheet, _Costs(compute_sheet(everything))),
        *_on_other_metrics(sheet),
        *_on_copies(sheet),
    ]
    return tuple(f"{sentence}." for sentence in sentences)


class _Costs:
    """What an image of each generator costs, in FLOPs where all are known and else in evaluations."""

    def __init__(self, sheet: Sheet) -> None:
        self._networkless = sheet.networkless
        evaluations = QUANTITIES["network_evaluations_per_image"]
        flops = QUANTITIES["sampling_flops_per_image"]
        self._evaluations = sheet.frame[evaluations.label].dropna().to_dict()
        self._flops = sheet.frame[flops.label].dropna().to_dict()

    def ratio(self, generator: str, other: str) -> tuple[float, str] | None:
        """How many times `other`'s cost `generator`'s is, and of what; None where that has no answer."""
        for costs, name in ((self._flops, "compute"), (self._evaluations, "network evaluations")):
            if costs.get(generator) is not None and costs.get(other):
                return costs[generator] / costs[other], name
        return None

    def without_network(self, generator: str) -> bool:
        return generator in self._networkless

    def in_words(self, generator: str) -> str:
        """`, at 250 network evaluations an image`, or nothing where the cost is unknown."""
        if self.without_network(generator):
            return ", without a network"
        evaluations = self._evaluations.get(generator)
        if evaluations is None:
            return ""
        count = QUANTITIES["network_evaluations_per_image"].text(evaluations)
        return f", at {count} network evaluation{'' if evaluations == 1 else 's'} an image"


def _on_fid(sheet: Sheet, costs: _Costs) -> list[str]:
    fid = sheet.column("fid")
    winners = best_in_column(sheet, fid.label)
    if not winners:
        return []
    fids = sheet.texts(fid)
    best = winners[0]
    among = " of the generators that do not copy" if sheet.copying else ""
    verb = "have" if len(winners) > 1 else "has"
    sentences = [f"{_listed(winners)} {verb} the best {fid.label}{among}: {fids[best]}{costs.in_words(best)}"]
    ranked = sheet.frame[fid.label].drop(list(sheet.copying)).dropna().sort_values(kind="stable")
    rivals = [str(generator) for generator in ranked.index if generator not in winners]
    if costs.without_network(best):
        return sentences
    with_network = [generator for generator in rivals if not costs.without_network(generator)]
    sentences += _cheaper_rival(best, with_network, sheet, costs)
    if networkless := [generator for generator in rivals if costs.without_network(generator)]:
        first = networkless[0]
        sentences.append(f"Without a network, {first} reaches {fids[first]}")
    return sentences


def _cheaper_rival(best: str, rivals: Sequence[str], sheet: Sheet, costs: _Costs) -> list[str]:
    fid = sheet.column("fid")
    values = sheet.frame[fid.label]
    for rival in rivals:  # the best FID first
        ratio = costs.ratio(rival, best)
        if ratio is None or ratio[0] > 1 / CHEAPER_BY or values[rival] > CLOSE_WITHIN * values[best]:
            continue
        return [f"{rival} reaches {sheet.texts(fid)[rival]} at {_fraction(ratio[0])} of the {ratio[1]}"]
    return []


def _on_other_metrics(sheet: Sheet) -> list[str]:
    fid = sheet.column("fid")
    won: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for quantity in sheet.columns:
        winners = best_in_column(sheet, quantity.label)
        if winners and quantity.room == "quality" and quantity is not fid:
            won[winners].append(f"{quantity.label} ({sheet.texts(quantity)[winners[0]]})")
    champions = best_in_column(sheet, fid.label)
    clauses = []
    for winners, columns in sorted(won.items(), key=lambda item: item[0] != champions):
        also = "also " if winners == champions else ""
        verb = f"{also}leads on" if len(winners) == 1 else f"{also}share the lead on"
        clauses.append(f"{_listed(winners)} {verb} {_listed(columns)}")
    return ["; ".join(clauses)] if clauses else []


def _on_copies(sheet: Sheet) -> list[str]:
    copied = sheet.texts(QUANTITIES["copied"])
    return [
        f"{generator} is not ranked: {copied[generator]} of its samples repeat training images"
        for generator in sheet.copying
    ]


def _fraction(ratio: float) -> str:
    """0.1 -> a tenth; 0.137 -> 14 %."""
    for divisor, words in _FRACTIONS.items():
        if abs(ratio * divisor - 1) < 0.03:
            return words
    return f"{ratio:.0%}".replace("%", " %") if ratio >= 0.01 else "less than a hundredth"


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
