"""One transformer block as a model of one layer without embedding and head: rows of x in, rows of y out."""

import numpy as np

from golden.spec import BlockParams, BlockSpec, ModelParams, ModelSpec
from hw.config import TileConfig

from .device import Device
from .layout import align, lane_words, put_program, unlane
from .model_decode import ModelDecode
from .model_image import ModelImage
from .model_prefill import ModelPrefill

__all__ = ["BlockImage", "run_block"]


class BlockImage(ModelImage):
    """A block, the rows of a prefill and those of the decode steps behind it, and the programs for both.

    prefill, decode: (tokens, hidden) float32; either may have no rows. phases: name -> (program, arguments).
    ValueError or MemoryError name what does not fit, with sizes.
    """

    def __init__(
        self,
        config: TileConfig,
        spec: BlockSpec,
        params: BlockParams,
        prefill: np.ndarray,
        decode: np.ndarray,
        dram_bytes: int = 32 << 20,
    ):
        self.tokens, self.steps = len(prefill), len(decode)
        if self.tokens + self.steps > spec.max_tokens:
            raise ValueError(
                f"{self.tokens} + {self.steps} tokens: allowed is max_tokens = {spec.max_tokens}"
            )
        model = ModelSpec(
            name=spec.name,
            architecture="llama",
            block=spec,
            windows=(spec.window,),
            vocab=1,
            context=spec.max_tokens,
        )
        none = np.zeros((0, spec.hidden), np.float32)
        super().__init__(
            config,
            model,
            ModelParams(none, [params], None, None),
            chunk=align(self.tokens, 32),
            bare=True,
            dram_bytes=dram_bytes,
        )
        self.phases: dict[str, tuple[np.ndarray, tuple[int, ...]]] = {}
        if self.tokens:
            put_program(self.dram.data, self.x_in, lane_words(prefill, config.columns))
            self._add("prefill", ModelPrefill(self), (0, self.tokens, 0))
        if self.steps:
            position = np.full(config.columns, self.tokens, np.uint32)
            put_program(self.dram.data, self.state_at + 4 * config.columns, position)
            put_program(self.dram.data, self.rows_in, decode.astype(np.float32))
            self._add("decode", ModelDecode(self), (self.steps,))

    def _add(self, phase: str, program: ModelPrefill | ModelDecode, args: tuple[int, ...]) -> None:
        words = program.program.image()
        put_program(self.dram.data, self.program_at[phase], words)
        self.phases[phase], self.labels[phase] = (words, args), program.labels

    def outputs(self, dram: np.ndarray) -> np.ndarray:
        """(tokens + steps, hidden) float32 that the programs left in DRAM."""
        c, h = self.config.columns, self.block.hidden
        groups = -(-self.tokens // c)
        out = [dram[self.rows_out :][: self.steps * h * 4].view(np.float32).reshape(-1, h)]
        if self.tokens:
            words = dram[self.x_out :][: groups * c * h * 4].view(np.float32)
            out.insert(0, unlane(words.reshape(groups, h, c), self.tokens))
        return np.concatenate(out)


def run_block(
    device: Device, spec: BlockSpec, params: BlockParams, prefill: np.ndarray, decode: np.ndarray
) -> np.ndarray:
    """Prefill, then decode, rows of x (tokens, hidden) float32 on a device -> (tokens, hidden) float32."""
    image = BlockImage(device.config, spec, params, prefill, decode)
    device.attach(image.dram.data)
    for phase, (words, args) in image.phases.items():
        device.run(image.program_at[phase], len(words), args)
    return image.outputs(device.read_dram(0, len(image.dram.data)))
