"""The cells of the paper's tables: what each one trains, and the paper's number for it."""

import dataclasses

QUANTIZERS = {
    # The activation quantizer of QIL has no integer form; PACT takes its place.
    "dorefa": {"weight_quantizer": "dorefa", "activation_quantizer": "dorefa"},
    "pact-sawb": {"weight_quantizer": "sawb", "activation_quantizer": "pact"},
    "qil": {"weight_quantizer": "qil", "activation_quantizer": "pact"},
    "lsq": {"weight_quantizer": "lsq", "activation_quantizer": "lsq_plus"},
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cell:
    """One number of a table.

    Attributes:
        table: Number of the table.
        row: What the table calls it.
        model: Name of the network.
        dataset: Data set of TensorFlow Datasets that the paper has.
        w_bits, a_bits: Target widths in bits, or None: float.
        method: Name of a function in `methods`.
        options: Its keyword arguments, as pairs.
        quantizer: One of `QUANTIZERS`.
        teacher: Name of a larger float network, or None.
        paper: The paper's accuracy in %, or None.
    """

    table: int
    row: str
    model: str
    dataset: str
    w_bits: int | None = 2
    a_bits: int | None = 2
    method: str = "retrain"
    options: tuple = ()
    quantizer: str = "pact-sawb"
    teacher: str | None = None
    paper: float | None = None

    @property
    def widths(self):
        """The widths as the paper writes them: W2/A2, F for float."""
        return f"W{self.w_bits or 'F'}/A{self.a_bits or 'F'}"


def options(**values):
    return tuple(values.items())


def table_1():
    """Widths at inference that were not trained; the paper's numbers: `READ_AT`."""
    for w_bits, a_bits in ((2, None), (None, 2)):
        yield Cell(
            table=1,
            row=f"W{w_bits or 'F'}A{a_bits or 'F'}",
            model="ResNet20",
            dataset="cifar100",
            w_bits=w_bits,
            a_bits=a_bits,
            method="read_at_widths",
        )


# Table 1: {row: {width at inference: accuracy in %}}.
READ_AT = {
    "W2AF": {"2": 65.74, "4": 58.01, "8": 55.85, "float": 54.70},
    "WFA2": {"2": 66.93, "4": 68.48, "8": 68.77, "float": 68.71},
}


def table_2():
    """Losses and teachers; u = 1 is ours, and `dot`: Eq. 8 without the division by L2 norms."""
    on = {"table": 2, "model": "ResNet20", "dataset": "cifar10"}
    yield Cell(**on, row="retrain", paper=90.73)
    for loss, kd, fixed, drawn in (
        ("kl", 91.24, 91.22, 90.83),
        ("cosine", 91.22, 91.18, 91.44),
        ("dot", None, None, None),
    ):
        yield Cell(**on, row=f"KD {loss}", method="kd", options=options(loss=loss), paper=kd)
        same = 90.74 if loss == "cosine" else None  # of Table 3
        for u, paper in ((0.0, fixed), (0.5, drawn), (1.0, same)):
            row = f"SPEQ u={u:g} {loss}"
            settings = options(loss=loss, u=u)
            yield Cell(**on, row=row, method="speq", options=settings, paper=paper)


def table_3():
    """The quantization probability u, Mix, and other temperatures."""
    on = {"table": 3, "model": "ResNet20", "dataset": "cifar10", "method": "speq"}
    accuracies = (None, 91.23, 91.22, 91.29, 91.39, 91.44, 91.43, 91.21, 91.24, 90.96, 90.74)
    for tenths, paper in enumerate(accuracies):
        u = tenths / 10
        # Table 3 has no readable number for u = 0; Table 2 has the same cell.
        settings = options(loss="cosine", u=u)
        yield Cell(**on, row=f"u={u:g}", options=settings, paper=paper or 91.18)
    yield Cell(**on, row="Mix", options=options(draw="mix"), paper=91.23)
    for temperature in (1.0, 4.0):  # ours; all others have 2
        settings = options(loss="cosine", u=0.5, temperature=temperature)
        yield Cell(**on, row=f"u=0.5, T={temperature:g}", options=settings)


def table_4():
    """CIFAR: plain retraining, QKD and SPEQ, with quantized and with float weights."""
    for model, dataset, teacher, accuracies in (
        ("VGG16", "cifar10", None, (92.5, None, 93.1, 92.9, 93.5)),
        ("ResNet20", "cifar10", "ResNet32", (90.7, 90.5, 91.4, 91.8, 92.1)),
        ("ResNet32", "cifar100", "VGG16", (66.9, 66.4, 69.1, 67.9, 69.7)),
        ("MobileNetV2", "cifar100", None, (73.0, None, 74.4, 74.5, 75.2)),
    ):
        on = {"table": 4, "model": model, "dataset": dataset}
        retrain, qkd, speq, float_retrain, float_speq = accuracies
        yield Cell(**on, row="retrain", paper=retrain)
        if teacher:
            yield Cell(**on, row="QKD", method="qkd", teacher=teacher, paper=qkd)
        yield Cell(**on, row="SPEQ", method="speq", paper=speq)
        yield Cell(**on, row="retrain", w_bits=None, paper=float_retrain)
        yield Cell(**on, row="SPEQ", w_bits=None, method="speq", paper=float_speq)


def table_5():
    """ImageNet: quantizers, plain retraining and SPEQ."""
    for model, accuracies in (
        ("AlexNet", (46.4, 58.1, 57.2, None, 59.3, 54.1, 54.9, 60.8)),
        ("ResNet18", (62.6, 65.7, 67.0, None, 67.4, 66.9, 67.5, 68.4)),
        ("ResNet34", (None, 70.6, None, None, 71.5, None, None, None)),
    ):
        on = {"table": 5, "model": model, "dataset": "imagenet2012"}
        dorefa, qil, pact_sawb, lsq, speq, float_dorefa, float_pact, float_speq = accuracies
        for quantizer, paper in (
            ("dorefa", dorefa),
            ("qil", qil),
            ("pact-sawb", pact_sawb),
            ("lsq", lsq),
        ):
            yield Cell(**on, row=quantizer, quantizer=quantizer, paper=paper)
        yield Cell(**on, row="SPEQ", method="speq", paper=speq)
        if model == "ResNet34":
            continue
        yield Cell(**on, row="dorefa", quantizer="dorefa", w_bits=None, paper=float_dorefa)
        yield Cell(**on, row="pact", w_bits=None, paper=float_pact)
        yield Cell(**on, row="SPEQ", w_bits=None, method="speq", paper=float_speq)


def table_6():
    """EfficientNet-b0 on ImageNet, with EfficientNet-b1 as teacher where there is one."""
    on = {
        "table": 6,
        "model": "EfficientNetB0",
        "dataset": "imagenet2012",
        "w_bits": 3,
        "a_bits": 3,
        "quantizer": "lsq",
    }
    yield Cell(**on, row="retrain", paper=68.4)
    yield Cell(**on, row="SPEQ", method="speq", paper=69.5)
    yield Cell(**on, row="AP", method="apprentice_c", teacher="EfficientNetB1", paper=68.4)
    yield Cell(**on, row="QKD", method="qkd", teacher="EfficientNetB1", paper=69.2)


def table_7():
    """SPEQ beside and together with larger teachers."""
    for model, teacher, accuracies in (
        ("ResNet18", "ResNet34", (66.6, 66.8, 67.4, 67.4, 67.8)),
        ("ResNet34", "ResNet50", (70.5, 71.1, 71.6, 71.5, 72.1)),
    ):
        on = {"table": 7, "model": model, "dataset": "imagenet2012"}
        retrain, ap, qkd, speq, both = accuracies
        yield Cell(**on, row="retrain", paper=retrain)
        for scheme in "abc":
            yield Cell(
                **on,
                row=f"AP, scheme {scheme.upper()}",
                method=f"apprentice_{scheme}",
                teacher=teacher,
                paper=ap if scheme == "c" else None,
            )
        yield Cell(**on, row="QKD", method="qkd", teacher=teacher, paper=qkd)
        yield Cell(**on, row="SPEQ", method="speq", paper=speq)
        yield Cell(**on, row="SPEQ+AP", method="speq", teacher=teacher, paper=both)


TABLES = {
    number: tuple(cells())
    for number, cells in enumerate(
        (table_1, table_2, table_3, table_4, table_5, table_6, table_7), start=1
    )
}
