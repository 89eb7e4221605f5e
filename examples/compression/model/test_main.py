"""Run in this folder: python3 -m unittest"""

import json
import os
import random
import unittest

import main

RANDOM = "262144,7.9993,0.004,0.38,0.5,0.0036,0.98,0,0"
TEXT = "35149,4.5733,0,1,0,0.033685,0.028422,0.71547,0.00036985"


def setUpModule():
    # The watchdog starts a model in its bundle's root.
    os.chdir(os.path.dirname(os.path.abspath(__file__)))
    main.init()


class Predict(unittest.TestCase):
    def test_leaves_noise_alone_and_packs_text(self):
        self.assertEqual(main.predict(RANDOM), "none")
        self.assertIn(main.predict(TEXT), ("zstd-best", "xz"))

    def test_takes_spaces_and_a_line_end(self):
        self.assertEqual(main.predict(RANDOM.replace(",", ", ") + "\n"), main.predict(RANDOM))

    def test_agrees_with_the_tree_as_written(self):
        with open("coefficients/codec.json", encoding="utf-8") as file:
            trained = json.load(file)

        def walk(node, values):
            if isinstance(node, str):
                return node
            name, threshold, low, high = node
            return walk(low if values[name] <= threshold else high, values)

        draw = random.Random(1)
        for _ in range(2000):
            values = {name: draw.random() for name in main.FEATURES}
            values["size"] = draw.randint(1, 262144)
            values["entropy"] *= 8
            request = ",".join(repr(values[name]) for name in main.FEATURES)
            self.assertEqual(main.predict(request), walk(trained["tree"], values), request)

    def test_bad_input_names_the_field_and_the_rule(self):
        for request, message in [
            ("", "expected 9 comma-separated numbers .*, got 1$"),
            (RANDOM + ",1", "got 10$"),
            (RANDOM.replace("7.9993", "much"), "entropy is not a number: 'much'"),
            (RANDOM.replace("7.9993", "8.1"), "entropy is out of its range: '8.1'"),
            (RANDOM.replace("262144", "inf"), "size is out of its range: 'inf'"),
            (RANDOM.replace("262144", "-1"), "size is out of its range: '-1'"),
            (RANDOM.replace("0.98", "nan"), "pairs is out of its range: 'nan'"),
            (RANDOM.replace("0.98", "x" * 1000), "pairs is not a number: 'x{40}'$"),
        ]:
            with self.subTest(request[:40]), self.assertRaisesRegex(ValueError, message):
                main.predict(request)


if __name__ == "__main__":
    unittest.main()
