"""The model's test: faas-cli build runs it. By hand: python3 -m unittest in this folder."""

import os
import unittest

import main


def setUpModule():
    os.chdir(os.path.dirname(os.path.abspath(__file__)))
    main.init()


class Predict(unittest.TestCase):
    def test_follows_the_line(self):
        self.assertEqual(main.predict("0"), "1.0")
        self.assertEqual(main.predict("10"), "21.0")

    def test_refuses_what_is_not_a_number(self):
        with self.assertRaises(ValueError):
            main.predict("ten")


if __name__ == "__main__":
    unittest.main()
