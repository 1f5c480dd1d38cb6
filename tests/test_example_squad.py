"""Questions about texts: scores worked by hand, windows, tokens, and SQuAD's own layout."""

import json

import keras
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


def test_learning_rates_rise_for_a_tenth_of_the_steps_and_fall_to_zero():
    pytest.importorskip("keras_hub")
    import bert_squad

    x = keras.Input((2,))
    model = keras.Model(x, {name: keras.layers.Dense(2)(x) for name in bert_squad.HEADS})
    bert_squad.compile_model(model, 0.01, 100)
    rates = [
        float(keras.ops.convert_to_numpy(rate_at(model, step))) for step in (0, 5, 10, 55, 100)
    ]
    assert rates == pytest.approx([0, 0.005, 0.01, 0.005, 0], abs=1e-9)


def rate_at(model, step):
    model.optimizer.iterations.assign(step)
    return model.optimizer.learning_rate


def test_unknown_words_have_their_token():
    import squad

    tokens = squad.Words(squad.embedded(50, seed=0))
    ((known,), (unknown,)) = tokens.pieces(["Red", "purple"])
    assert unknown == tokens[squad.UNKNOWN] != known


# ---- SQuAD as TensorFlow Datasets lays it out ----------------------------------------------------


def official_json(questions):
    """SQuAD's own layout: articles, paragraphs, questions with all their answers."""
    paragraphs = []
    for question in questions:
        answer = {"text": question.answers[0], "answer_start": question.start}
        asked = {"id": question.key, "question": question.question, "answers": [answer, answer]}
        paragraphs.append({"context": question.text, "qas": [asked]})
    return {"version": "1.1", "data": [{"title": "who has what", "paragraphs": paragraphs}]}


@pytest.fixture(scope="module")
def squad_dir(tmp_path_factory):
    """SQuAD 1.1 in little: the builder of TensorFlow Datasets reads files written here."""
    import sys

    import tensorflow_datasets as tfds
    from test_examples import EXAMPLES

    sys.path.insert(0, str(EXAMPLES))
    import squad

    root = tmp_path_factory.mktemp("squad")
    paths = {}
    for split, count, seed in (("train", 48, 0), ("dev", 8, 1)):
        paths[split] = root / f"{split}.json"
        paths[split].write_text(json.dumps(official_json(squad.embedded(count, seed))))
    with pytest.MonkeyPatch.context() as patch:
        manager = tfds.download.DownloadManager
        patch.setattr(
            manager, "download_and_extract", lambda self, urls: {k: paths[k] for k in urls}
        )
        tfds.builder("squad/v1.1", data_dir=root).download_and_prepare()
    return root


def test_squad_is_read_through_tensorflow_datasets(squad_dir):
    import squad

    train, test = squad.load(str(squad_dir), train_examples=40)
    assert (len(train), len(test)) == (40, 8)
    known = {question.key: question for question in squad.embedded(8, seed=1)}
    for question in test:
        made = known[question.key]
        assert question.answers == made.answers * 2
        assert (question.question, question.text, question.start) == (
            made.question,
            made.text,
            made.start,
        )


@pytest.fixture(scope="module")
def preset(tmp_path_factory):
    """A BERT of KerasHub in little, saved as a preset: a vocabulary of word pieces, weights."""
    keras_hub = pytest.importorskip("keras_hub")
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "which", "?", ".", "red", "blue", "two"]
    pieces += [mark + c + v for mark in ("", "##") for c in "bdfgklmnprst" for v in "aeiou"]
    folder = tmp_path_factory.mktemp("preset")
    backbone = keras_hub.models.BertBackbone(
        vocabulary_size=len(pieces),
        num_layers=1,
        num_heads=2,
        hidden_dim=32,
        intermediate_dim=64,
        max_sequence_length=48,
    )
    backbone.save_to_preset(str(folder))
    keras_hub.models.BertTokenizer(pieces, lowercase=True).save_to_preset(str(folder))
    return folder


def test_word_pieces_know_the_place_of_their_word(preset):
    import squad

    tokens = squad.WordPieces(str(preset))
    text = "tiru red nolo"
    pieces = tokens.pieces([word for word, _, _ in squad.words_of(text)])
    assert [len(of_word) for of_word in pieces] == [2, 1, 2]
    question = squad.Question("a", "which nolo?", text, ("nolo",), 9)
    windows = squad.windows_of([question], tokens, length=24, stride=8)
    first, last = windows.starts[0], windows.ends[0]
    assert last == first + 1  # two pieces
    assert {tuple(place) for place in windows.places[0][first : last + 1]} == {(9, 13)}


def test_squad_runs_through_all_stages_and_goes_on_where_it_was(squad_dir, preset, tmp_path):
    flags = ["--dataset=squad", f"--data_dir={squad_dir}", f"--preset={preset}", "--out_dir=out"]
    flags += [
        "--checkpoint_dir=checkpoints",
        "--length=48",
        "--stride=16",
        "--batch_size=16",
        "--calibration_examples=16",
    ]
    status, text = run("bert_squad.py", *flags, "--stages=pretrain", cwd=tmp_path)
    assert status == 0, text
    status, text = run("bert_squad.py", *flags, cwd=tmp_path)
    assert status == 0, text
    assert "pretrain: resumes after step" in text
    rows = json.loads((tmp_path / "out" / "results.json").read_text())["rows"]
    stages = ["pretrain", "retrain", "control", "speq", "settled", ".tflite"]
    assert [row["name"] for row in rows] == stages
    assert "0 differ from the simulation" in text


def test_the_embedded_questions_need_nothing_but_the_program(tmp_path):
    pytest.importorskip("keras_hub")
    flags = ["--train_examples=640", "--test_examples=40", "--stages=pretrain"]
    status, text = run("bert_squad.py", *flags, "--pretrain_epochs=1", cwd=tmp_path)
    assert status == 0, text
    (row,) = json.loads((tmp_path / "out" / "bert" / "results.json").read_text())["rows"]
    assert (row["name"], row["steps"]) == ("pretrain", 10)
