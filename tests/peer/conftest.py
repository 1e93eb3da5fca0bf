"""The marks that transformers puts on its tests, which pytest must know."""

MARKS = (  # noqa: SIM905
    "flash_attn_3_test flash_attn_4_test flash_attn_test generate torch_compile_test"
    " torch_export_test slow accelerate_tests deepspeed"
).split()


def pytest_configure(config):
    for mark in MARKS:
        config.addinivalue_line("markers", f"{mark}: of transformers")
