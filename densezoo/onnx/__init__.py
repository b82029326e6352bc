"""Converts JAX programs to ONNX: a rule for each primitive, and maps in NCHW, as ONNX's operations need them.

`convert.convert` is for `dz.export_onnx`, not for users, who would have to select the forms of the operations.
"""

__all__: list[str] = []
