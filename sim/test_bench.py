"""Floors of the benchmark on the RTL (`make bench` reports all of its figures)."""

import pytest

from golden.machine import Machine
from hw.config import BASE
from golden.spec import GPTOSS_SIM, LLAMA_SIM
from sim.bench import Case, kernel_case, model_case, model_spec, result
from sim.tile import RtlDevice, first_difference
from sw import attention_kernels, kernels


@pytest.fixture(scope="module")
def device():
    device = RtlDevice(BASE, latency=40)
    yield device
    device.close()


@pytest.mark.parametrize(
    "make,floor",
    [
        (lambda: kernels.gemm_sram(BASE, 64, 64, 64), 0.93),  # 67 cycles of pipeline
        (lambda: kernels.gemm_sram(BASE, 192, 192, 192), 0.995),
        (lambda: kernels.gemm_dram(BASE, 128, 512, 256), 0.93),
        (lambda: kernels.gemv(BASE, 2880, 2880, 2), 0.985),
        (lambda: attention_kernels.attention_decode(BASE, 512), 0.90),
        (lambda: attention_kernels.attention_prefill(BASE, 128), 0.80),
    ],
    ids=["gemm-sram-64", "gemm-sram-192", "gemm-dram", "gemv-mxfp4", "attn-decode-512", "attn-prefill-128"],
)
def test_floor(device: RtlDevice, make, floor: float) -> None:
    for row in rows(device, kernel_case(make()), "ideal"):
        assert row["ratio"] >= floor, row
        assert row["bytes_moved"] <= 1.05 * row["bytes_needed"], row


@pytest.mark.parametrize("memory,reach", [("ideal", 1.0), ("stall20", 0.8)])
def test_whole_models(device: RtlDevice, memory: str, reach: float) -> None:
    """128 tokens of prefill, then whole tokens of decode. reach: of the port, when every channel stalls."""
    device.sim.stall(0.0 if memory == "ideal" else 0.2)
    try:
        found = rows(device, model_case(BASE, model_spec(LLAMA_SIM), 128, 2), memory)
        found += rows(device, model_case(BASE, model_spec(GPTOSS_SIM), 64, 2), memory)[1:]
    finally:
        device.sim.stall(0.0)
    floors = {"llama-model-prefill-128": 0.94, "llama-model-decode-x1": 0.98, "gptoss-model-decode-x1": 0.94}
    assert {row["name"] for row in found} == set(floors)
    for row in found:
        dram_bound = "decode" in row["name"]
        assert row["ratio"] >= floors[row["name"]] * (reach if dram_bound else 1), row
        assert row["bytes_moved"] <= 1.01 * row["bytes_needed"], row


def rows(device: RtlDevice, case: Case, memory: str) -> list[dict]:
    """The measured phases of a case, whose DRAM equals the instruction-level model's."""
    _, dram, phases, measured = case
    model = Machine(BASE, dram.data.copy(), trace=True)
    device.attach(dram.data)
    out = []
    for phase, (address, words, args) in phases.items():
        model.run(address, words, args)
        run = device.run(address, words, args)
        assert first_difference(device.dram, model, dram, {}) is None
        if phase in measured:
            name, need, from_sram = measured[phase]
            out.append(result(BASE, name, memory, run, need, from_sram))
    return out
