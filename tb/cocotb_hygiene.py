"""Deliberately bad tests, on which the runner must fail: tb/test_hygiene.py."""

import os

import cocotb
from cocotb.triggers import Timer


@cocotb.test()
async def test_good(dut):
    dut.clk.value = 0
    await Timer(10, "ns")
    dut.clk.value = 1
    await Timer(10, "ns")


@cocotb.test()
async def test_wrong(dut):
    await Timer(10, "ns")
    assert len(dut.clk) == 2, "deliberately wrong"


@cocotb.test(timeout_time=100, timeout_unit="ns")
async def test_hangs_in_simulated_time(dut):
    while True:
        await Timer(10, "ns")


@cocotb.test()
async def test_hangs(dut):
    while True:
        pass


@cocotb.test()
async def test_simulator_leaves(dut):
    await Timer(10, "ns")
    os._exit(0)


@cocotb.test()
async def test_no_such_port(dut):
    dut.no_such_port.value = 1
