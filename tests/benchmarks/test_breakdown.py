"""The profile of a compiled model."""

import jax
import jax.numpy as jnp

import densezoo as dz
from benchmarks.breakdown import Arguments, main, milliseconds_of, operations_of, table


def test_operations_are_read_from_a_program():
    text = "\n".join(
        [
            "  %p.1 = f32[1,8,8,3]{3,2,1,0} parameter(0)",
            "  %conv.2 = (f32[1,8,8,4]{3,2,1,0}, u8[16]{0}) custom-call(%p.1),"
            ' custom_call_target="__onednn$convolution", metadata={op_name="jit(_run)/Net/head/conv/add"}',
            "  ROOT %wrapped_pad_fusion.3 = f32[1,10,10,4]{3,2,1,0} fusion(%conv.2), kind=kLoop, calls=%computation",
        ]
    )
    found = operations_of(text)
    assert [each.kind for each in found.values()] == ["parameter", "oneDNN convolution", "loop: pad"]
    assert found["conv.2"].layer == "Net/head/conv/add"
    assert found["conv.2"].shape == "f32[1,8,8,4]"
    lines = table(found, {"conv.2": 3.0, "wrapped_pad_fusion.3": 1.0}, top=1).splitlines()
    assert lines[2] == "| oneDNN convolution | 1 | 3.00 | 75% |"
    assert lines[-1] == "| oneDNN convolution | 3.00 | f32[1,8,8,4] | Net/head/conv/add |"


def test_times_come_from_the_trace():
    x = jnp.ones((256, 256))
    program = jax.jit(lambda x: jnp.tanh(x @ x)).lower(x).compile()
    operations = operations_of(program.as_text())
    times = milliseconds_of(lambda: program(x), set(operations), 2)
    assert times and all(0 < value < 1e4 for value in times.values())


def test_the_command_prints_both_tables(capsys, monkeypatch):
    tiny = dz.create_model("unet", dz.PlainEncoder((4, 8)), 2)
    monkeypatch.setattr(dz, "create_model", lambda *_, **__: tiny)
    main(Arguments(model="unet:plain", shape="1x16x16", passes=1, top=1))
    text = capsys.readouterr().out
    assert "unet:plain 1x16x16 float32:" in text
    assert text.count("\n| --- |") == 2
