"""Names of layers in a graph, including those inside flattened models and layers."""


def free_name(name, taken):
    """Returns `name`, or the first of `name_1`, `name_2`, ... that is not in `taken`.

    Example:
        >>> free_name("dense", {"dense", "dense_1"})
        'dense_2'
    """
    candidate, number = name, 0
    while candidate in taken:
        number += 1
        candidate = f"{name}_{number}"
    return candidate


class Names(set):
    """The names used in a graph; new ones are made unique."""

    def unique(self, name):
        """Returns `name`, or the first free `name_1`, `name_2`, ..., and takes it."""
        name = free_name(name, self)
        self.add(name)
        return name


class NameInModel:
    """Names the layers and operations of a model that is flattened into another one."""

    def __init__(self, prefix):
        self.prefix = prefix

    def __call__(self, operation):
        return self.prefix + operation.name


class NameInLayer(NameInModel):
    """Names what is inside a composite layer.

    Keras numbers default names across the whole process; here numbering restarts in each layer, so
    that the same model always gets the same names.
    """

    def __init__(self, prefix):
        super().__init__(prefix)
        self.given = {}
        self.taken = Names()

    def __call__(self, operation):
        if id(operation) not in self.given:
            name = operation.name.rstrip("0123456789").removesuffix("_")
            is_automatic = name.replace("_", "") == type(operation).__name__.lower()
            name = self.taken.unique(name if is_automatic else operation.name)
            self.given[id(operation)] = (operation, name)  # keeping the object keeps its id unique
        return self.prefix + self.given[id(operation)][1]
