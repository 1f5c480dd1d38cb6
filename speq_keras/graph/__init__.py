"""Converts a Functional or Sequential model to plain data (nested models flattened) and back.

module       does
-----------  ------------------------------------------------------------
nodes        the graph: nodes, tensors, inputs and outputs
names        names of layers that were inside others
functional   which models have a graph
copies       fresh layers like those of a model
notation     the serialized form of a graph in Keras
reading      a model -> its graph
running      computes a graph node by node
"""

from speq_keras.graph.copies import check_has_config, copy_operation, weights_changed
from speq_keras.graph.functional import deep_graphs, is_functional, plain_functional
from speq_keras.graph.names import Names
from speq_keras.graph.nodes import Graph, Node, Ref, Tensor, map_refs, refs_in
from speq_keras.graph.reading import output_specs, read_graph
from speq_keras.graph.running import call_node, run

__all__ = [
    "Graph",
    "Names",
    "Node",
    "Ref",
    "Tensor",
    "call_node",
    "check_has_config",
    "copy_operation",
    "deep_graphs",
    "is_functional",
    "map_refs",
    "output_specs",
    "plain_functional",
    "read_graph",
    "refs_in",
    "run",
    "weights_changed",
]
