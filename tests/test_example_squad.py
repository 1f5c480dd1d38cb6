"""Questions about texts: scores worked by hand, windows, tokens, and SQuAD's own layout."""

import json

import numpy as np
import pytest
from test_examples import run


@pytest.fixture(autouse=True)
def path(examples_on_the_path):
    pass


@pytest.mark.parametrize(
    ("answer", "right", "exact", "f1"),
    [
        ("The Eiffel Tower!", "eiffel tower", 1, 1),
        ("in the red house", "red house", 0, 0.8),  # 2 of 3 words right, 2 of 2 found
        ("house", "the red house", 0, 2 / 3),
        ("red red house", "red house", 0, 0.8),  # a word counts as often as it is there
        ("blue", "red", 0, 0),
        ("the", "a", 1, 1),  # nothing is left of either
        ("", "red", 0, 0),
        ("U.S.", "us", 1, 1),
    ],
)
def test_scores_are_those_worked_by_hand(answer, right, exact, f1):
    import squad

    assert squad.exact_match(answer, right) == exact
    assert squad.f1(answer, right) == pytest.approx(f1)


def test_the_best_of_several_right_answers_counts():
    import squad

    questions = [
        squad.Question("a", "?", "", ("red house", "house"), 0),
        squad.Question("b", "?", "", ("green",), 0),
    ]
    found = squad.scores_of({"a": "the house", "b": "dark green"}, questions)
    assert found == pytest.approx((50, 100 * (1 + 2 / 3) / 2))


def test_embedded_answers_stand_where_they_are_said_to():
    import squad

    questions = squad.embedded(50, seed=1)
    for question in questions:
        (answer,) = question.answers
        assert question.text[question.start :].startswith(answer)
        asked = question.question.removeprefix("which ").removesuffix("?")
        assert answer.split()[-1] == asked
        assert question.text.split().count(f"{asked}.") == 1
    assert questions == squad.embedded(50, seed=1) != squad.embedded(50, seed=2)


@pytest.mark.parametrize(("length", "stride"), [(40, 8), (16, 4)])
def test_the_answer_of_a_window_is_that_of_its_question(length, stride):
    import squad

    questions = squad.embedded(30, seed=0)
    windows = squad.windows_of(questions, squad.Words(questions), length=length, stride=stride)
    assert windows.inputs["token_ids"].shape == (len(windows), length)
    found = set()
    for number in range(len(windows)):
        first, last = windows.starts[number], windows.ends[number]
        if first:
            question = questions[windows.questions[number]]
            places = windows.places[number]
            assert question.text[places[first, 0] : places[last, 1]] == question.answers[0]
            found.add(question.key)
    assert len(found) == len(questions)


def test_perfect_logits_give_perfect_scores_and_nothing_outside_the_text():
    import squad

    questions = squad.embedded(20, seed=3)
    windows = squad.windows_of(questions, squad.Words(questions), length=24, stride=6)
    starts, ends = (np.zeros((len(windows), 24)) for _ in range(2))
    rows = np.arange(len(windows))
    starts[rows, windows.starts], ends[rows, windows.ends] = 9, 9
    starts[:, 0], ends[:, 0] = 99, 99  # [CLS] is no answer
    answers = squad.answers_of(windows, questions, starts, ends)
    assert squad.scores_of(answers, questions) == (100, 100)


def test_an_answer_has_no_more_tokens_than_allowed_and_ends_behind_its_start():
    import squad

    questions = squad.embedded(1, seed=4)
    windows = squad.windows_of(questions, squad.Words(questions), length=40, stride=8)
    text = np.flatnonzero(windows.places[0][:, 0] >= 0)
    starts, ends = np.zeros((1, 40)), np.zeros((1, 40))
    starts[0, text[5]] = 9
    ends[0, text[2]] = 8  # before the start
    ends[0, text[9]] = 7  # five tokens
    ends[0, text[7]] = 6
    (answer,) = squad.answers_of(windows, questions, starts, ends, longest=3).values()
    places = windows.places[0]
    assert answer == questions[0].text[places[text[5], 0] : places[text[7], 1]]


def test_unknown_words_have_their_token():
    import squad

    tokens = squad.Words(squad.embedded(50, seed=0))
    ((known,), (unknown,)) = tokens.pieces(["Red", "purple"])
    assert unknown == tokens[squad.UNKNOWN] != known


@pytest.mark.slow
def test_a_small_encoder_is_trained_quantized_and_exported(tmp_path):
    pytest.importorskip("keras_hub")
    flags = ["--train_examples=1280", "--test_examples=40", "--out_dir=out"]
    flags += ["--stages=pretrain,retrain", "--retrain_epochs=1"]
    status, text = run("bert_squad.py", *flags, cwd=tmp_path)
    assert status == 0, text
    rows = json.loads((tmp_path / "out" / "results.json").read_text())["rows"]
    assert [row["name"] for row in rows] == ["pretrain", "retrain", "folded", ".tflite"]
    assert [row["steps"] for row in rows] == [80, 20, 0, 0]
    assert abs(rows[-1]["f1"] - rows[-2]["f1"]) < 5  # of 40 questions
    assert "0 differ from the simulation" in text
