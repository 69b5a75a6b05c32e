"""float64, no silent promotion of ranks, shapes checked at run time, compiled programs kept."""

import contextlib
import gc
import os
from pathlib import Path

import jax
import jax.monitoring
import pytest
from jaxtyping import config as jaxtyping_config, install_import_hook

# Compilation is most of the time, and these flags make it three times shorter; `XLA_FLAGS= make
# test` tests the defaults. Notebooks and child processes inherit the environment.
FLAGS = (
    "--xla_backend_optimization_level=0"
    " --xla_cpu_parallel_codegen_split_count=1"  # one module of LLVM for each program
)
if jax.__version_info__ < (0, 11):  # later versions do not know it, and end the process
    FLAGS += " --xla_cpu_use_fusion_emitters=false"
CACHE = Path(__file__).resolve().parent.parent / ".cache" / "jax"
os.environ.setdefault("XLA_FLAGS", FLAGS)
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(CACHE))
# Thousands of programs are small, and each file of tests compiles them anew.
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_compilation_cache_dir", str(CACHE))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)

pytest.register_assert_rewrite("tests.helpers")

with install_import_hook("gflow", "beartype.beartype"):
    import gflow
    import gflow.api
    import gflow.app.experiment
    import gflow.app.report
    import gflow.app.run_directory
    import gflow.plots

# Tracing makes many objects that live on, and a tenth of its time was to look through them.
gc.freeze()
gc.set_threshold(50_000, 20, 50)


# Each compiled program keeps pages mapped, and Linux allows a process some 65,000.
MOST_PAGES = 30_000


@pytest.fixture(scope="module", autouse=True)
def _programs_of_other_modules_as_long_as_there_is_room():
    yield
    pages = Path("/proc/self/maps")
    if not pages.exists() or pages.read_bytes().count(b"\n") > MOST_PAGES:
        jax.clear_caches()


@pytest.fixture
def unchecked_annotations():
    """Without run-time checks of annotations, as users run it: gflow's own checks are seen."""
    before = jaxtyping_config.jaxtyping_disable
    jaxtyping_config.update("jaxtyping_disable", True)
    yield
    jaxtyping_config.update("jaxtyping_disable", before)


@pytest.fixture
def compilations():
    """A context that lists the programs that are compiled in it, or read from disk."""

    @contextlib.contextmanager
    def counted():
        names = []

        def note(event: str, _: float, **facts) -> None:
            if event == "/jax/core/compile/backend_compile_duration":
                names.append(facts["fun_name"])

        jax.monitoring.register_event_duration_secs_listener(note)
        yield names
        jax.monitoring.unregister_event_duration_listener(note)

    return counted


@pytest.fixture(scope="session")
def wave() -> gflow.EmpiricalRisk:
    """Forty points of a piecewise quadratic wave on [-1, 1]."""
    import jax.numpy as jnp

    x = jnp.linspace(-1.0, 1.0, 40)
    return gflow.EmpiricalRisk(x[:, None], gflow.piecewise.wave()(x))


@pytest.fixture(scope="session")
def smooth_net() -> gflow.ShallowNet:
    return gflow.ShallowNet(1, 8, key=jax.random.key(0), activation="tanh")


@pytest.fixture(scope="session")
def smooth_flow(wave, smooth_net) -> gflow.Trajectory:
    return gflow.solve_flow(wave, smooth_net, t1=10.0)
