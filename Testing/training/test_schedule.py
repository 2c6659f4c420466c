"""How long a network is trained: epochs, the rate, runs that go on, several processes."""

import json
from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnx")
pytest.importorskip("monai")

import onnxruntime  # noqa: E402
import SimpleITK as sitk  # noqa: E402
import train  # noqa: E402
from monai.transforms import Transform  # noqa: E402

from common import cache, processes, resume  # noqa: E402
from lfs import fit  # noqa: E402
from lfs.build import Build  # noqa: E402
from lfs.export import export  # noqa: E402
from lfs.network import LFSNetwork  # noqa: E402
from lfs.schedule import FULL_SCHEDULE, SMALL_SCHEDULE, Course, Schedule  # noqa: E402
from LiverFibrosisStagingLib import StagingError  # noqa: E402

SIZE = (4, 16, 16)
# 12 cases: 6 steps with crops, 8 with whole sections; the rate falls from step 8 on.
QUICK = Schedule(
    *(2, 1, 24),
    batch=3,
    crop=8,
    warm_up=2,
    check_every=2,
    patience=9,
    learning_rate=1e-2,
    crop_steps=6,
)


@pytest.mark.parametrize("cases, steps", [(176, (176, 264)), (352, (352, 528)), (40, (176, 264))])
def test_the_steps_follow_from_the_cohort(cases, steps):
    """252 patients and 5 folds give 176 CTs; fewer get the same number of steps, more get more."""
    course = FULL_SCHEDULE.course(cases)
    assert (course.crops, course.total) == steps
    drawn = 16 * course.crops + 8 * (course.total - course.crops)
    assert drawn == pytest.approx(20 * max(cases, 176), abs=16)


def test_numbers_of_steps_can_be_given_instead():
    assert Schedule(steps=400, crop_steps=300).course(50)[::2] == (300, 400)
    assert Schedule(steps=400).course(176)[::2] == (176, 400)
    assert SMALL_SCHEDULE.course(10)[::2] == (16, 24)
    for wrong in (Schedule(steps=176), Schedule(epochs=16), Schedule(steps=9, crop_steps=-1)):
        with pytest.raises(StagingError, match="at least one step without crops is needed"):
            wrong.course(176)


@pytest.mark.parametrize(
    "name, value",
    [
        *(("epochs", 0), ("batch", 0), ("patience", 0), ("check_every", 0), ("temper", -1)),
        *(("learning_rate", 0.0), ("learning_rate", float("nan")), ("sparsity", float("nan"))),
    ],
)
def test_values_out_of_range_are_refused(name, value):
    with pytest.raises(StagingError, match=rf"{name} .*needed\.$"):
        Schedule(**{name: value})


def test_the_rate_rises_stays_and_falls():
    schedule = Schedule(learning_rate=1e-2, warm_up=10)
    course = Course.of(50, 100)
    rates = np.array([schedule.rate(step, course) for step in range(100)])
    assert course == (50, 60, 100)
    np.testing.assert_allclose(rates[:10], 1e-2 * np.arange(1, 11) / 10)
    np.testing.assert_allclose(rates[10:60], 1e-2)
    assert (np.diff(rates[59:]) < 0).all() and 0 < rates[-1] < 3e-4
    assert rates[79:81].mean() == pytest.approx(5e-3)  # half of it, halfway
    longer = [schedule.rate(step, Course.of(50, 200)) for step in range(60)]
    np.testing.assert_array_equal(rates[:60], longer)
    assert course.falling_from(30) == (50, 30, 50)


def bright_cases(stages, seed=0):
    """Prepared cases without files, whose brightness depends on the stage."""
    rng = np.random.default_rng(seed)
    return [
        {
            "volume": torch.from_numpy(
                (165 + 8 * (stage - 2) + rng.normal(0, 9, (1, 6, *SIZE[1:]))).astype(np.uint8)
            ),
            "liver": torch.tensor([[3, 8, 8]], dtype=torch.int16),
            "spleen": torch.empty((0, 3), dtype=torch.int16),
        }
        for stage in stages
    ]


STAGES = np.arange(12) % 5
CASES = bright_cases(STAGES)


def trained(run, schedule=QUICK):
    torch.manual_seed(0)
    network = LFSNetwork(SIZE, channels=(2, 3, 4, 5), dense=4)
    fit.fit(network, (CASES, STAGES), (CASES[:7], STAGES[:7]), schedule, run, workers=0)
    return network, torch.load(run / "checkpoint.pt", weights_only=True)


def log(run):
    rows = [line.split(",") for line in (run / "log.csv").read_text().splitlines()]
    return rows[0], [[row[0], *row[2:]] for row in rows[1:]]  # without the seconds


def same(one, other):
    assert one.keys() == other.keys()
    for name, values in one.items():
        torch.testing.assert_close(values, other[name], msg=name)


@pytest.fixture(scope="module")
def longer(tmp_path_factory):
    """A run of 3 epochs from the start."""
    run = tmp_path_factory.mktemp("longer")
    return run, *trained(run, replace(QUICK, epochs=3))


@pytest.fixture
def stop_after(monkeypatch):
    """Interrupts training when a checkpoint of this step or a later one has been written."""

    def patch(step):
        save = fit._Progress.save

        def save_and_stop(progress):
            save(progress)
            if progress.step >= step:
                raise KeyboardInterrupt

        monkeypatch.setattr(fit._Progress, "save", save_and_stop)

    return patch


@pytest.mark.parametrize("interrupted", [4, 8, 12, None])
def test_an_extended_run_equals_one_that_was_longer_from_the_start(
    interrupted, longer, stop_after, monkeypatch, tmp_path
):
    """Interrupted with crops, before and while the rate fell, and not interrupted."""
    if interrupted:
        stop_after(interrupted)
        with pytest.raises(KeyboardInterrupt):
            trained(tmp_path)
        monkeypatch.undo()
    else:
        _, state = trained(tmp_path)
        assert state["step"] == 14
    network, state = trained(tmp_path, replace(QUICK, epochs=3))
    assert state["step"] == longer[2]["step"] == 22
    same(state["network"], longer[2]["network"])
    same(network.state_dict(), longer[1].state_dict())
    assert log(tmp_path) == log(longer[0])


def test_a_finished_run_is_not_trained_again(longer, monkeypatch):
    run, network, _ = longer
    monkeypatch.setattr(fit._Progress, "save", pytest.fail)
    again, _ = trained(run, replace(QUICK, epochs=3))
    same(again.state_dict(), network.state_dict())


def test_the_rate_falls_when_nothing_improves_and_a_higher_patience_goes_on(tmp_path, monkeypatch):
    """With a constant measure, the third to fifth of 30 validations are no improvement."""
    monkeypatch.setattr(fit, "measures", lambda *_: {"loss": 1.0, "balanced": 1.0, "kappa": 0.0})
    schedule = replace(QUICK, crop_steps=0, steps=60, patience=2)
    _, state = trained(tmp_path, schedule)
    # Three count as improvements; after two more, at step 10, the rate falls; two more end it.
    assert (state["course"], state["step"], state["stopped"]) == ([0, 10, 17], 14, True)
    assert state["stable"]["step"] == 10
    _, state = trained(tmp_path, replace(schedule, patience=4))
    assert (state["course"], state["step"], state["stopped"]) == ([0, 14, 23], 22, True)
    assert [row[0] for row in log(tmp_path)[1]] == [str(step) for step in range(2, 23, 2)]


def test_a_network_trained_on_several_gpus_is_exported(tmp_path, monkeypatch):
    """There, normalisations use the patches of all processes; these layers cannot be exported."""
    synchronised = torch.nn.SyncBatchNorm.convert_sync_batchnorm(LFSNetwork(SIZE, (2, 3, 4, 5)))
    metadata = {"calibration": {"temperature": 1.0}}
    with pytest.raises(ValueError, match=r"SyncBatchNorm.*cannot be exported"):
        export(synchronised, tmp_path / "refused.onnx", metadata)
    monkeypatch.setattr(fit, "synchronised", lambda: True)
    normalised = []
    forward = torch.nn.SyncBatchNorm.forward
    monkeypatch.setattr(
        torch.nn.SyncBatchNorm, "forward", lambda *a: normalised.append(1) or forward(*a)
    )
    network, state = trained(tmp_path)
    assert normalised
    export(network, tmp_path / "LFS.onnx", metadata)
    same(network.state_dict(), state["best"])
    volume = torch.rand(2, 1, *SIZE)
    session = onnxruntime.InferenceSession(tmp_path / "LFS.onnx")
    with torch.no_grad():
        expected = network(volume).numpy()
    found = session.run(["logits"], {"volume": volume.numpy()})[0]
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_a_run_may_grow_but_not_change_otherwise(tmp_path):
    plan = {"schedule": {"batch": 3}, "crop_steps": [6, 6], "steps": [14, 15], "patience": 3}
    path = tmp_path / "plan.json"
    growing = ("steps", "patience")
    resume.check_plan(path, plan, growing=growing)
    longer = plan | {"steps": [22, 24], "patience": 4}
    resume.check_plan(path, longer, growing=growing)
    assert json.loads(path.read_text()) == longer
    for wrong, named in (
        (plan, "steps and patience"),
        (longer | {"steps": [30, 23]}, "steps"),
        (longer | {"steps": [30]}, "steps"),
        (longer | {"crop_steps": [7, 7], "steps": [30, 30]}, "crop_steps and steps"),
        (longer | {"schedule": {"batch": 4}}, "schedule"),
    ):
        with pytest.raises(resume.RunError, match=f"another run: its {named} differ"):
            resume.check_plan(path, wrong, growing=growing)
    assert json.loads(path.read_text()) == longer


def test_the_seed_of_the_training_leaves_the_folds_as_they_are():
    """So that trainings with several seeds can be compared."""
    build = Build(SIZE, channels=(2, 3, 4, 5))
    weights = [next(build.network(seed).parameters()) for seed in (0, 0, 1)]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])
    options = train._parser().parse_args(
        ["--manifest", "m", "-o", "r", "--seed", "3", "--fold-seed", "5"]
    )
    assert (options.seed, options.fold_seed) == (3, 5)


def square():
    """A transform, defined where processes need not import this module for it."""

    class Square(Transform):
        def __call__(self, item):
            if item["number"] == 13:
                raise StagingError("13: another number is needed.")
            return {"square": torch.tensor(item["number"] ** 2)}

    return Square()


@pytest.mark.parametrize("workers", [0, 1])
def test_cases_are_prepared_before_training_by_processes(workers, tmp_path, monkeypatch):
    before = sitk.ProcessObject.GetGlobalDefaultNumberOfThreads()
    items = [{"number": number} for number in range(5)]
    transform = square()
    found = cache.cached(items, transform, tmp_path, workers)
    assert len(list(tmp_path.glob("*.pt"))) == 5
    assert sitk.ProcessObject.GetGlobalDefaultNumberOfThreads() == before
    monkeypatch.setattr(type(transform), "__call__", pytest.fail)
    assert [int(item["square"]) for item in found] == [0, 1, 4, 9, 16]
    monkeypatch.undo()
    with pytest.raises(StagingError, match="13: another number"):
        cache.cached([*items, {"number": 13}], square(), tmp_path, workers)


def test_only_the_first_process_of_a_machine_prepares(tmp_path, monkeypatch):
    waited = []
    monkeypatch.setattr(cache, "first_on_node", lambda: False)
    monkeypatch.setattr(cache, "wait_for_others", lambda: waited.append(1))
    cache.cached([{"number": 2}], square(), tmp_path)
    assert waited and not list(tmp_path.iterdir())


@pytest.mark.parametrize("cores, local, workers", [(2, 1, 1), (16, 1, 8), (16, 4, 3), (1, 4, 1)])
def test_workers_are_the_free_cores(cores, local, workers, monkeypatch):
    monkeypatch.setattr(processes, "cpu_count", lambda: cores)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(local))
    assert processes.default_workers() == workers
