from tests.forgetting.continual_jobs import bundled_rows, project_with_evals

__all__ = ["bundled_rows", "project_with_evals"]
