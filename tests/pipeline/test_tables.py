"""Tables are Markdown whose columns stand below one another."""

from erckit.pipeline.tables import format_interval, format_mean, write_table


def test_columns_are_filled_up_but_the_last_and_bars_stay_in_their_cell():
    assert write_table(["label", "said"], [["mad", "a | b"], ["powerful", "yes"]]) == (
        "| label    | said |\n| -------- | --- |\n| mad      | a \\| b |\n| powerful | yes |\n"
    )


def test_numbers_for_people():
    assert format_interval((-1.234, 5)) == "[-1.23, 5.00]" and format_interval((-1.234, 5), "+") == "[-1.23, +5.00]"
    assert format_mean(40, None) == "40.00" and format_mean(40, 1.234) == "40.00 ± 1.23"
