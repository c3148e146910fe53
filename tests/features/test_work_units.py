from features.work_units import WorkUnit, work_units


def test_small_files_share_a_unit_and_a_large_one_is_several():
    files = [("a", [2]), ("b", [1]), ("c", [3, 3, 3, 1]), ("d", [2])]
    assert list(work_units(files, 5)) == [
        WorkUnit((("a", (0,)), ("b", (0,)), ("c", (0,))), 6),
        WorkUnit((("c", (1, 2)),), 6),
        WorkUnit((("c", (3,)), ("d", (0,))), 3),
    ]


def test_nothing_is_read_where_there_are_no_rows():
    assert list(work_units([], 5)) == []
    assert list(work_units([("a", []), ("b", [0])], 5)) == []
    assert list(work_units([("a", [0]), ("b", [1])], 5)) == [WorkUnit((("b", (0,)),), 1)]
