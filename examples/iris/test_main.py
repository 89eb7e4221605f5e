"""Run in this folder: python3 -m unittest"""

import json
import os
import unittest

import main


def setUpModule():
    # The watchdog starts a model in its bundle's root.
    os.chdir(os.path.dirname(os.path.abspath(__file__)))
    main.init()


class Predict(unittest.TestCase):
    def test_names_the_species(self):
        for request, species in [
            ("5.1,3.5,1.4,0.2", "setosa"),
            ("6.0,2.9,4.5,1.5", "versicolor"),
            ("6.3,3.3,6.0,2.5", "virginica"),
        ]:
            self.assertEqual(main.predict(request), species)

    def test_takes_spaces_and_a_line_end(self):
        self.assertEqual(main.predict(" 5.1, 3.5, 1.4, 0.2\n"), "setosa")

    def test_agrees_with_the_coefficients_as_written(self):
        # predict works on differences to the first class; this is the plain softmax.
        with open("coefficients/iris.json", encoding="utf-8") as file:
            trained = json.load(file)
        seen = set()
        for step in range(2000):
            x = [(step * k % 79) / 10 for k in (7, 11, 13, 17)]
            scores = [
                bias + sum(w * v for w, v in zip(weights, x))
                for weights, bias in zip(trained["weights"], trained["bias"])
            ]
            expected = trained["labels"][scores.index(max(scores))]
            self.assertEqual(main.predict(",".join(map(str, x))), expected, x)
            seen.add(expected)
        self.assertEqual(seen, set(trained["labels"]))

    def test_bad_input_names_the_field_and_the_rule(self):
        for request, message in [
            ("", "expected 4 comma-separated numbers .*, got 1 field$"),
            ("5.1,3.5,1.4", "got 3 fields"),
            ("5.1,3.5,1.4,0.2,9", "got 5 fields"),
            ("5.1,wide,1.4,0.2", "sepal width is not a number: 'wide'"),
            ("5.1,3.5,,0.2", "petal length is not a number: ''"),
            (
                "5.1,3.5,1.4," + "x" * 1000,
                "petal width is not a number: 'x{40}\\.\\.\\.'",
            ),
            ("nan,3.5,1.4,0.2", "sepal length is not a finite number: 'nan'"),
            ("5.1,3.5,1.4,-inf", "petal width is not a finite number: '-inf'"),
            ("5.1,3.5,1e999,0.2", "petal length is not a finite number: '1e999'"),
            ("inf,-inf,inf,nan", "sepal length is not a finite number: 'inf'"),
            ("1e308,1e308,1e308,1e308", "too large to score"),
        ]:
            with (
                self.subTest(request[:40]),
                self.assertRaisesRegex(ValueError, message),
            ):
                main.predict(request)


if __name__ == "__main__":
    unittest.main()
