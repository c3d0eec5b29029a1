from tests.jobs import make_job, project

__all__ = ["make_job", "project"]
