"""Questions about texts: SQuAD 1.1, a similar embedded task, tokens, windows, and the scores.

A question and its text become windows of equal length, `[CLS] question [SEP] part of the text
[SEP]`, whose tokens know their position in the text: an answer is a span of the text.
"""

import collections
import dataclasses
import pathlib
import re
import string

import numpy as np

PAD, CLS, SEP, UNKNOWN = "[PAD]", "[CLS]", "[SEP]", "[UNK]"
LONGEST_ANSWER = 30  # tokens, as in BERT's own evaluation


@dataclasses.dataclass(frozen=True)
class Question:
    """A question, its text, the correct answers, and the start of the first one in the text."""

    key: str
    question: str
    text: str
    answers: tuple
    start: int


# Questions.


def load(data_dir=None, *, download=False, train_examples=None, test_examples=None):
    """Returns the training and the validation questions of SQuAD 1.1, from TensorFlow Datasets.

    Raises:
        FileNotFoundError: If the data set is missing.
    """
    import tensorflow_datasets as tfds

    folder = None if data_dir is None else str(pathlib.Path(data_dir).expanduser())
    parts = []
    for split, count in (("train", train_examples), ("validation", test_examples)):
        try:
            rows = tfds.load("squad/v1.1", split=split, data_dir=folder, download=download)
        except (AssertionError, FileNotFoundError, tfds.core.DatasetNotFoundError) as error:
            raise FileNotFoundError(
                f"SQuAD 1.1 was not found in {folder or 'the folder of TensorFlow Datasets'}. Pass "
                "--data_dir, or --download."
            ) from error
        rows = rows if count is None else rows.take(count)
        parts.append([_question_of(row) for row in tfds.as_numpy(rows)])
    return tuple(parts)


def _question_of(row):
    answers = tuple(answer.decode() for answer in row["answers"]["text"])
    fields = (row[name].decode() for name in ("id", "question", "context"))
    return Question(*fields, answers, int(row["answers"]["answer_start"][0]))


COLOURS = "red blue green white black yellow brown".split()
COUNTS = "one two three four five".split()
SYLLABLES = [consonant + vowel for consonant in "bdfgklmnprst" for vowel in "aeiou"]
# Sixty invented words: with a dozen, every width answers every question.
NOUNS = [
    first + second for first, second in zip(SYLLABLES, SYLLABLES[7:] + SYLLABLES, strict=False)
]


def embedded(count, seed):
    """Returns made-up questions, such as "which diga?", about texts that say who has what.

    "miro two blue diga. teba red kulo. ..." has the answer "two blue diga", of one to three words.
    Finding its end requires comparing the question with the text; its start comes before.
    """
    rng = np.random.default_rng(seed)
    questions = []
    for number in range(count):
        names, kinds = rng.choice(NOUNS, (2, rng.integers(2, 6)), replace=False)
        parts, answers = [], []
        for name, kind in zip(names, kinds, strict=True):
            words = [rng.choice(COUNTS)] * int(rng.integers(2))
            words += [rng.choice(COLOURS)] * int(rng.integers(2))
            answers.append(" ".join([*words, kind]))
            parts.append(f"{name} {answers[-1]}.")
        asked = int(rng.integers(len(names)))
        start = sum(len(part) + 1 for part in parts[:asked]) + len(names[asked]) + 1
        key, question, text = str(number), f"which {kinds[asked]}?", " ".join(parts)
        questions.append(Question(key, question, text, (answers[asked],), start))
    return questions


# Tokens.


def words_of(text):
    """Returns (word, first character, end) of words and of single punctuation marks."""
    return [(m.group(), m.start(), m.end()) for m in re.finditer(r"\w+|[^\w\s]", text)]


class Words:
    """Whole words in lower case, taken from some questions; all others are unknown.

    Args:
        questions: The source of the words.
        most: Number of words to keep, the most frequent ones.
    """

    def __init__(self, questions, most=30_000):
        counts = collections.Counter(
            word.lower()
            for question in questions
            for text in (question.question, question.text)
            for word, _, _ in words_of(text)
        )
        kept = sorted(counts, key=lambda word: (-counts[word], word))[: most - 4]
        self.places = {word: place for place, word in enumerate([PAD, UNKNOWN, CLS, SEP, *kept])}

    def __len__(self):
        return len(self.places)

    def __getitem__(self, mark):
        return self.places[mark]

    def pieces(self, words):
        """Returns the tokens of each word, a list of lists."""
        return [[self.places.get(word.lower(), self.places[UNKNOWN])] for word in words]


class WordPieces:
    """KerasHub's tokenizer of a BERT preset, word by word.

    Args:
        preset: Name or folder of a preset of KerasHub.
    """

    def __init__(self, preset):
        import keras_hub

        self.tokenizer = keras_hub.models.BertTokenizer.from_preset(preset)

    def __len__(self):
        return self.tokenizer.vocabulary_size()

    def __getitem__(self, mark):
        return self.tokenizer.token_to_id(mark)

    def pieces(self, words):
        """Returns the tokens of each word, a list of lists."""
        # A list of lists or a ragged tensor, depending on the version of KerasHub.
        rows = self.tokenizer(words) if words else []
        return [[int(token) for token in of_word] for of_word in rows]


# Windows.


@dataclasses.dataclass(frozen=True)
class Windows:
    """Windows of equal length.

    Attributes:
        inputs: {name: int32 array (windows, length)}: token_ids, segment_ids, padding_mask.
        starts, ends: First and last token of the answer; both 0, `[CLS]`, if not in this window.
        questions: Index of the question of each window.
        places: For each window and token, its first character and end in the text; −1: none.
    """

    inputs: dict
    starts: np.ndarray
    ends: np.ndarray
    questions: np.ndarray
    places: np.ndarray

    def __len__(self):
        return len(self.questions)


def windows_of(questions, tokens, *, length, stride):
    """Cuts questions and texts into windows.

    Args:
        questions: A list of `Question`.
        tokens: `Words` or `WordPieces`.
        length: Tokens per window.
        stride: Number of text tokens between the starts of consecutive windows.
    """
    rows = collections.defaultdict(list)
    for number, question in enumerate(questions):
        asked = sum(tokens.pieces([w for w, _, _ in words_of(question.question)]), [])
        asked = [tokens[CLS], *asked[: length // 2 - 2], tokens[SEP]]
        words = words_of(question.text)
        text, places = [], []
        pieces = tokens.pieces([word for word, _, _ in words])
        for (_, first, end), of_word in zip(words, pieces, strict=True):
            text += of_word
            places += [(first, end)] * len(of_word)
        room = length - len(asked) - 1
        answer = (question.start, question.start + len(question.answers[0]))
        for begin in range(0, max(1, len(text) - room + stride), stride):
            part = slice(begin, begin + room)
            own = [*asked, *text[part], tokens[SEP]]
            own_places = [(-1, -1)] * len(asked) + places[part] + [(-1, -1)]
            inside = [
                place
                for place, (first, end) in enumerate(own_places)
                if end > answer[0] and 0 <= first < answer[1]
            ]
            whole = inside and own_places[inside[0]][0] <= answer[0]
            whole = whole and own_places[inside[-1]][1] >= answer[1]
            missing = length - len(own)
            rows["token_ids"].append(own + [tokens[PAD]] * missing)
            rows["segment_ids"].append([0] * len(asked) + [1] * (length - len(asked)))
            rows["padding_mask"].append([1] * len(own) + [0] * missing)
            rows["starts"].append(inside[0] if whole else 0)
            rows["ends"].append(inside[-1] if whole else 0)
            rows["questions"].append(number)
            rows["places"].append(own_places + [(-1, -1)] * missing)
    arrays = {name: np.array(values, "int32") for name, values in rows.items()}
    inputs = {name: arrays.pop(name) for name in ("token_ids", "segment_ids", "padding_mask")}
    return Windows(inputs=inputs, **arrays)


def answers_of(windows, questions, start_logits, end_logits, longest=LONGEST_ANSWER):
    """Returns {key: text} of the best span of each text, over all windows of a question.

    Args:
        windows: `Windows`.
        questions: The questions they were made from.
        start_logits: (windows, length).
        end_logits: Likewise.
        longest: Most tokens of an answer.
    """
    best = {question.key: (-np.inf, "") for question in questions}
    allowed = np.tril(np.triu(np.ones((start_logits.shape[1],) * 2, bool)), longest - 1)
    for number, places in enumerate(windows.places):
        is_text = places[:, 0] >= 0
        scores = start_logits[number][:, None] + end_logits[number][None]
        scores = np.where(allowed & is_text[:, None] & is_text[None], scores, -np.inf)
        first, last = np.unravel_index(scores.argmax(), scores.shape)
        question = questions[windows.questions[number]]
        if scores[first, last] > best[question.key][0]:
            text = question.text[places[first, 0] : places[last, 1]]
            best[question.key] = (float(scores[first, last]), text)
    return {key: text for key, (_, text) in best.items()}


# Scores.


def normalized(answer):
    """Returns an answer in lower case, without punctuation, articles and extra spaces.

    Reference: Rajpurkar et al., "SQuAD: 100,000+ Questions for Machine Comprehension of Text"
    (arXiv:1606.05250), Section 6.1.
    """
    answer = "".join(c for c in answer.lower() if c not in string.punctuation)
    return " ".join(word for word in answer.split() if word not in ("a", "an", "the"))


def exact_match(answer, right):
    """Whether two answers are equal after `normalized`."""
    return float(normalized(answer) == normalized(right))


def f1(answer, right):
    """Returns the harmonic mean of precision and recall of the words of an answer."""
    ours, theirs = normalized(answer).split(), normalized(right).split()
    common = sum((collections.Counter(ours) & collections.Counter(theirs)).values())
    if not ours or not theirs:
        return float(ours == theirs)
    return 2 * common / (len(ours) + len(theirs))


def scores_of(answers, questions):
    """Returns (exact match, F1) in %: for each question the best over its correct answers."""
    found = [
        [max(score(answers[q.key], right) for right in q.answers) for score in (exact_match, f1)]
        for q in questions
    ]
    return tuple(100 * float(mean) for mean in np.mean(found, axis=0))
