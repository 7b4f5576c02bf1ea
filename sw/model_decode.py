"""The decode program of a whole model: tokens in, argmax tokens out, one program for every position.

Per step and user: the token's embedding, all layers, final norm, head, argmax, the next step's token.
ARG0 = steps; tokens and positions of step 0 come from image.state_at. In `bare` images rows of rows_in go
through the layers to rows_out. Weights, keys and values all pass through one ring of SRAM slots, far ahead of
the arithmetic. The threads are in decode_load.py, decode_matmul.py, decode_vector.py and decode_softmax.py.
"""

from hw.isa import ENTRY_WORDS

from .assembler import Program
from .decode_common import Emitter
from .decode_load import LoadThread, StoreThread
from .decode_matmul import MatmulThread
from .decode_plan import DecodePlan, plans
from .decode_vector import VectorThread
from .model_image import ModelImage

__all__ = ["ModelDecode"]


class ModelDecode:
    """Builds the program for image.program_at['decode'] (logits: 'logits').

    logits: leaves every user's logits at image.logits_at too. sram: what is where. labels: word index in the
    program -> text ("{layer}" for the layer). marks: word index of the instruction that begins a layer in
    each thread -> ("layer", layers). ValueError, with the sizes, when it does not fit.
    """

    def __init__(self, image: ModelImage, logits: bool = False):
        s = image.block
        if not s.causal or s.post_norm:
            raise ValueError(
                f"model {image.spec.name}: causal = {s.causal}, post_norm = {s.post_norm}: "
                "allowed for decode is a causal model with norms before its layers"
            )
        self.image = image
        logits = logits and not image.bare
        problem: ValueError | None = None
        for plan in plans(image, logits):
            try:
                self._build(plan, logits)
                return
            except ValueError as error:
                problem = error
        raise ValueError(f"model {image.spec.name}, decode of {image.users} users: {problem}")

    def _build(self, plan: DecodePlan, logits: bool) -> None:
        self.plan, self.sram = plan, plan.sram
        self.program = pr = Program(plan.image.config)
        emitters: list[Emitter] = []
        for kind, thread in (
            (LoadThread, pr.load),
            (StoreThread, pr.store),
            (MatmulThread, pr.matmul),
            (VectorThread, pr.vector),
        ):
            emitter = kind(plan, pr, thread, logits)
            emitter.emit()
            emitters.append(emitter)
        entries = pr.image()[:ENTRY_WORDS]  # ValueError if it is too long
        self.labels = pr.labels
        self.marks = {int(entries[e.t.number]) + e.top: ("layer", e.layers) for e in emitters}
