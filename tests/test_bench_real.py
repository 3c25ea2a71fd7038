"""`make bench-real` cuts, keeps and compares as its page says."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file
from support import steady

from bench import real, real_figures, real_pieces, report_real, tables
from bench.passes import Pass
from bench.real_pieces import Kept, Piece
from bench.sides import Ran
from evalkit.base import canon
from evalkit.plan.requests.request import Request, Settings


def texts(leaves: int, documents: int) -> list[Request]:
    """Prompts of some leaf tasks."""
    settings = Settings(("Q",), 8)
    return [
        Request(f"leaf{leaf}", n, 0, 0, "generate_until", f"prompt {leaf} {n}", "", settings)
        for leaf in range(leaves)
        for n in range(documents)
    ]


def choices(documents: int, ends: tuple[str, ...] = (" a", " bb", " cccc")) -> list[Request]:
    """Questions with three choices each."""
    return [
        Request("asked", n, index, 0, "loglikelihood", f"question {n}", end)
        for n in range(documents)
        for index, end in enumerate(ends)
    ]


@steady
@given(leaves=st.integers(1, 6), documents=st.integers(1, 9), seed=st.integers(0, 99))
def test_pieces_have_every_request_once_and_lm_evals_batches(
    leaves: int, documents: int, seed: int
) -> None:
    asked = texts(leaves, documents)
    length = {one.id: (seed * 31 + index * 17) % 23 for index, one in enumerate(asked)}
    for side in real_pieces.SIDES:
        made = real_pieces.pieces(side, "float32", "t", asked, length)
        assert sorted(one.id for piece in made for one in piece.asked) == sorted(length)
        assert len({piece.name for piece in made}) == len(made)
    theirs = real_pieces.pieces("lm-eval", "float32", "t", asked, length)
    assert all(len(piece.asked) <= real_pieces.SIZE for piece in theirs)
    rounds: dict[str, list[Request]] = {}
    for piece in theirs:
        rounds.setdefault(piece.name.split(".")[0], []).extend(piece.asked)
    assert len(rounds) == (documents if leaves > 1 else 1)
    for part in rounds.values():
        in_order = [length[one.id] for one in part]
        assert in_order == sorted(in_order, reverse=True)
        assert leaves == 1 or len({one.doc_id for one in part}) == 1


def test_fewer_documents_are_the_first_rounds_pieces() -> None:
    """What was measured of bbh 1 counts for bbh 5."""
    length = {one.id: 5 for one in texts(6, 3)}
    whole = real_pieces.pieces("lm-eval", "float32", "bbh", texts(6, 3), length)
    assert real_pieces.pieces("lm-eval", "float32", "bbh", texts(6, 1), length) == whole[:2]


@pytest.fixture
def kept(tmp_path: Path) -> Kept:
    return Kept(tmp_path / "kept", "sha256:1")


def test_a_kept_piece_is_read_again_and_another_question_is_another_piece(
    kept: Kept, tmp_path: Path
) -> None:
    piece = Piece("evalkit", "float32", "t", "all", tuple(choices(1)))
    assert kept.read(piece) is None
    answers: dict[str, Any] = {one.id: (-1.5, True) for one in piece.asked}
    kept.write(piece, Ran(2.0, answers, 3.0, passes=[Pass(rows=2, tokens=5, keys=5)]))
    found = kept.read(piece)
    assert found is not None
    assert (found["seconds"], found["cpu"], found["tokens"]) == (2.0, 3.0, 10)
    assert found["answers"] == {name: [-1.5, True] for name in answers}
    paths = {kept.path(piece), Kept(tmp_path / "kept", "sha256:2").path(piece)}
    for other in (("lm-eval", "float32", "t"), ("evalkit", "bfloat16", "t")):
        paths.add(kept.path(Piece(*other, "all", piece.asked)))
    paths.add(kept.path(Piece("evalkit", "float32", "t", "all", tuple(choices(2)))))
    assert len(paths) == 5


def test_lm_evals_pieces_outlive_a_change_of_evalkit_and_ours_do_not(
    kept: Kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    pieces = [Piece(side, "float32", "t", "all", tuple(choices(1))) for side in real_pieces.SIDES]
    theirs, ours = map(kept.path, pieces)
    monkeypatch.setattr("evalkit.__version__", "99")
    kept._code = {"engine.py": "changed"}
    assert kept.path(pieces[0]) == theirs
    assert kept.path(pieces[1]) != ours


def test_weights_are_known_by_their_numbers_and_not_by_their_files(tmp_path: Path) -> None:
    one, two = np.ones((2, 3), np.float32), np.zeros(4, np.float32)
    save_file({"a": one, "b": two}, tmp_path / "whole", metadata={"made": "so"})
    save_file({"b": two}, tmp_path / "first")
    save_file({"a": one}, tmp_path / "second")
    save_file({"a": one * 2, "b": two}, tmp_path / "other")
    whole = real_pieces.weights([tmp_path / "whole"])
    assert whole == real_pieces.weights([tmp_path / "first", tmp_path / "second"])
    assert whole != real_pieces.weights([tmp_path / "other"])


def test_equal_answers_have_no_distance() -> None:
    asked = [*choices(2), *texts(1, 1)]
    answers: dict[str, Any] = {one.id: [-1.0 - one.index, False] for one in choices(2)}
    answers["leaf0/0/0/0"] = "yes"
    found = real_figures.distance(asked, answers, dict(answers))
    assert (found["largest"], found["mean"], found["greedy"]) == (0.0, 0.0, 0)
    assert found["flips"] == {"acc": [], "acc_norm": []}
    assert (found["documents"], found["equal"], found["texts"], found["parted"]) == (3, 1, 1, [])


def test_a_flip_is_counted_with_its_margin_by_sum_and_by_character() -> None:
    """By characters the long choice is best, -1.2 / 4 against -1.0; the other side moves both."""
    plain = {f"asked/0/{n}/0": [value, False] for n, value in enumerate((-1.0, -1.1, -1.2))}
    other = {f"asked/0/{n}/0": [value, False] for n, value in enumerate((-1.3, -0.5, -1.2))}
    found = real_figures.distance(choices(1), plain, other)
    assert found["flips"]["acc"] == [pytest.approx(0.1)]
    assert found["flips"]["acc_norm"] == [pytest.approx(1.1 / 2 - 1.2 / 4)]
    assert found["largest"] == pytest.approx(0.6)
    assert found["shift"] == pytest.approx(0.1) and found["mean"] == pytest.approx(0.3)
    assert found["root_mean_square"] == pytest.approx(((0.3**2 + 0.6**2) / 3) ** 0.5)


def test_only_requests_that_both_sides_answered_are_compared() -> None:
    plain = {one.id: [-1.0, False] for one in choices(2)}
    first = {name: value for name, value in plain.items() if name.startswith("asked/0/")}
    found = real_figures.distance(choices(2), plain, first)
    assert (found["documents"], found["loglikelihoods"]) == (1, 3)
    assert real_figures.distance(choices(2), plain, {})["mean"] is None


@pytest.mark.parametrize(
    ("other", "margin"), [("ab cX", 0.3), ("X", 0.1), ("ab", 0.2), ("ab cd and on", 0.4)]
)
def test_texts_part_at_the_token_that_differs(other: str, margin: float) -> None:
    """The last token is the end of the text, which shows no characters."""
    pieces = ["ab", " c", "d", ""]
    text = {"tokens": [0, 1, 2, 3], "margins": [0.1, 0.2, 0.3, 0.4]}

    def decode(tokens: list[int]) -> str:
        return "".join(pieces[token] for token in tokens)

    assert real_figures.parting(text, "ab cd", other, decode) == margin


def test_the_page_shows_the_committed_figures() -> None:
    between = real.PAGE.read_text("utf-8").split("<!-- made by make bench-real -->")[1]
    between = between.split("<!-- end of make bench-real -->")[0].strip()
    path = tables.FIGURES / "bench-real.json"
    if path.is_file():
        assert between == report_real.text(canon.read_json(path))
    else:
        assert "|" not in between
