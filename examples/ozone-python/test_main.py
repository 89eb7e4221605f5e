"""Run in this folder: python3 -m unittest"""

import os
import unittest

import main


def setUpModule():
    # The watchdog starts a model in its bundle's root.
    os.chdir(os.path.dirname(os.path.abspath(__file__)))
    main.init()


class Predict(unittest.TestCase):
    def test_answers_what_the_model_in_r_answers(self):
        for request, ozone in [("190,7.4,67", "25.7"), ("299,8.6,65", "27.4"), ("230,10.9,95", "74.0")]:
            self.assertEqual(main.predict(request), ozone)

    def test_names_the_field_that_is_wrong(self):
        for request, says in [("190,7.4", "got 2"), ("190,calm,67", "wind"), ("190,7.4,inf", "temperature")]:
            with self.assertRaisesRegex(ValueError, says):
                main.predict(request)


if __name__ == "__main__":
    unittest.main()
