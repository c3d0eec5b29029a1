"""The columns of the result tables."""

from pipelines.report.columns import retention_columns, task_columns


def test_the_columns_name_the_models_and_the_units(demo_analysis):
    columns = task_columns(("base", "other-run"))
    assert [column.heading for column in columns][:5] == ["Task", "Metric", "Rows", "Base", "other-run"]
    texts = {column.key: column.text(demo_analysis.tasks["sentiment"]) for column in columns}
    assert texts["title"] == "exact match (%)" and texts["verdict"] == "better"
    assert " → " in texts["reference_nll"] and texts["wins"].count(" / ") == 2


def test_both_tables_begin_with_the_same_measures():
    models = ("base", "tuned")
    shared = ["base", "tuned", "delta", "ci95"]
    for columns in (task_columns(models), retention_columns(models)):
        assert [column.key for column in columns][3:7] == shared and columns[-1].key == "verdict"
