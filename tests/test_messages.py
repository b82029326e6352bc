from densezoo.messages import shortened


def test_long_lists_end_with_how_many_more_there_are():
    assert shortened(["a", "b"], limit=2) == "a; b"
    assert shortened(list("abcde"), "\n", 2) == "a\nb\nand 3 more"
