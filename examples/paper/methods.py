"""The methods of the paper: what each trains after the float and the retrained network.

    retrain          plain quantization-aware training goes on: the control
    read_at_widths   the same, read at other widths (Table 1)
    speq             Eq. 1, 2, 5; with a larger teacher Eq. 3, 4
    kd               a frozen float teacher: a larger one, or the network itself before quantization
    apprentice_a     the larger teacher is trained along
    apprentice_b     frozen teacher, from the float network on
    apprentice_c     frozen teacher, from the retrained network on
    qkd              after self-studying, which is the retrained network: co-studying, tutoring

All get the same number of steps, and the retrained network where it is their start. What Apprentice
B trains from the float network on gets the steps of retraining in addition.
"""

import speq_keras

TEMPERATURE = 2.0


def train(lab, cell):
    """Trains a cell in a laboratory, `run.Laboratory`, and returns its model and figures."""
    return METHODS[cell.method](lab, cell, **dict(cell.options))


def retrain(lab, cell):
    return lab.continue_from_retrained(cell, distillation=None)


def read_at_widths(lab, cell):
    model, figures = retrain(lab, cell)
    side, bits = ("weights", cell.w_bits) if cell.w_bits else ("activations", cell.a_bits)
    figures["read_at"] = {}
    for width in (2, 4, 8, None):
        model.set_bits(**{side: width})
        figures["read_at"][str(width or "float")] = lab.test_accuracy(model)
    model.set_bits(**{side: bits})
    return model, figures


def speq(lab, cell, *, loss="cosine", u=0.5, draw="bernoulli", temperature=TEMPERATURE):
    precision = {
        "bernoulli": speq_keras.precision.Bernoulli(u),
        "mix": speq_keras.precision.UniformMix(cell.a_bits, 8),
        "greedy": speq_keras.precision.Greedy(),
    }[draw]
    teacher = {"teacher": lab.float_network(cell, cell.teacher)} if cell.teacher else {}
    return lab.continue_from_retrained(
        cell, distillation=loss, teacher_precision=precision, temperature=temperature, **teacher
    )


def kd(lab, cell, *, loss="kl", temperature=TEMPERATURE):
    """Cross-entropy plus T²·L, as Eq. 2 adds SPEQ's: the halves of Eq. 4, doubled."""
    return lab.continue_from_retrained(
        cell,
        loss_weight=2.0,
        distillation=None,
        teacher=lab.float_network(cell, cell.teacher or cell.model),
        teacher_distillation=loss,
        temperature=temperature,
    )


def apprentice_a(lab, cell):
    both, figures = lab.train_together(cell, speq_keras.Apprentice)
    return both.student, figures


def apprentice_b(lab, cell):
    return lab.train_from_float(cell, **frozen_teacher(lab, cell))


def apprentice_c(lab, cell):
    return lab.continue_from_retrained(cell, **frozen_teacher(lab, cell))


def frozen_teacher(lab, cell):
    """Returns the arguments of `wrap` for Apprentice's schemes B and C."""
    teacher = lab.float_network(cell, cell.teacher)
    return {"distillation": None, "teacher": teacher, "temperature": 1.0}


def qkd(lab, cell, *, temperature=TEMPERATURE):
    """Co-studying and tutoring take half of the steps each."""
    both, first = lab.train_together(cell, speq_keras.CoStudy, share=0.5, temperature=temperature)
    model, figures = lab.continue_from(
        both.student,
        cell,
        share=0.5,
        loss_weight=2.0,
        distillation=None,
        teacher=both.teacher,
        temperature=temperature,
    )
    for name in ("steps", "seconds"):
        figures[name] += first[name]
    figures["loss_on_a_fixed_batch"][0] = first["loss_on_a_fixed_batch"][0]
    return model, figures


METHODS = {
    function.__name__: function
    for function in (
        *(retrain, read_at_widths, speq, kd),
        *(apprentice_a, apprentice_b, apprentice_c, qkd),
    )
}
