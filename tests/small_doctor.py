"""Settings of a small synthetic set, and shortcuts to run the doctor."""

from mg3d.doctor.run import DoctorOptions, run_doctor
from mg3d.phantom.generate import PhantomSettings

SETTINGS = PhantomSettings(
    train_patients=12, valid_patients=4, ctrg_cases=7, grid=32, second_scans=0.0, second_reconstructions=0.3, raw_tree=True
)


def diagnose(path, **options):
    """Runs the doctor without a progress bar."""
    return run_doctor(DoctorOptions(path=path, **options), lambda items, description, total: iter(items))


def problems(report):
    """Code -> volumes without data set, for errors and warnings."""
    return {
        result.code: sorted(name.split("/")[-1] for name in result.volumes)
        for result in report.results
        if result.severity != "info"
    }
