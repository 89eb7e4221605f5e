"""Run in this folder, with requirements.txt installed: python3 -m unittest"""

import json
import os
import random
import signal
import unittest

import main

ZERO = (
    "0,0,5,13,9,1,0,0,0,0,13,15,10,15,5,0,0,3,15,2,0,11,8,0,0,4,12,0,0,8,8,0,"
    "0,5,8,0,0,9,8,0,0,4,11,0,1,12,7,0,0,2,14,5,10,12,0,0,0,0,6,13,10,0,0,0"
)


def setUpModule():
    # The watchdog starts a model in its bundle's root.
    os.chdir(os.path.dirname(os.path.abspath(__file__)))
    main.init()


def pictures(count):
    """Return count random pictures: the hard case, where probabilities are not near 1."""
    ink = random.Random(1)
    return [",".join(str(ink.randint(0, 16)) for _ in range(64)) for _ in range(count)]


class Predict(unittest.TestCase):
    def test_reads_a_digit(self):
        self.assertEqual(json.loads(main.predict(ZERO))["digit"], 0)

    def test_an_array_and_a_line_of_numbers_are_the_same_picture(self):
        self.assertEqual(main.predict(f" [{ZERO}]\n"), main.predict(ZERO + "\n"))

    def test_the_answer_is_json_with_a_probability(self):
        for answer in map(json.loads, main.predict_batch(pictures(100))):
            self.assertEqual(list(answer), ["digit", "probability"])
            self.assertIn(answer["digit"], range(10))
            self.assertTrue(0.1 <= answer["probability"] <= 1.0)

    def test_bad_input_names_the_pixel_and_the_rule(self):
        for request, message in [
            ("", "expected 64 pixels, got 1 field$"),
            (ZERO + ",0", "expected 64 pixels, got 65 fields"),
            ("[]", "expected 64 pixels, got 0 fields"),
            ("[1, 2", "not a JSON array"),
            ("[" * 100_000, "not a JSON array"),
            ("x" + ZERO, "pixel 1 is not a number: 'x0'"),
            (ZERO + "?" * 1000, "pixel 64 is not a number: '0\\?+\\.\\.\\.$"),
            (ZERO[:-1] + "17", "pixel 64 is not between 0 and 16: '17'"),
            (ZERO[:-1] + "-1", "pixel 64 is not between 0 and 16: '-1'"),
            (ZERO[:-1] + "nan", "pixel 64 is not between 0 and 16: 'nan'"),
            (ZERO[:-1] + "inf", "pixel 64 is not between 0 and 16: 'inf'"),
            (f"[{ZERO[:-1]}null]", "pixel 64 is not a number: None"),
            (f"[{ZERO[:-1]}{'9' * 400}]", "pixel 64 is not a number: 9+\\.\\.\\.$"),
        ]:
            with (
                self.subTest(request[-40:]),
                self.assertRaisesRegex(ValueError, message),
            ):
                main.predict(request)


class PredictBatch(unittest.TestCase):
    def test_gives_the_answers_of_predict_in_order(self):
        requests = pictures(500)
        one_by_one = [main.predict(request) for request in requests]
        for size in (1, 2, 7, 32, 500):
            batches = [requests[i : i + size] for i in range(0, len(requests), size)]
            together = [answer for batch in batches for answer in main.predict_batch(batch)]
            self.assertEqual(together, one_by_one, f"batches of {size}")

    def test_of_nothing_is_nothing(self):
        self.assertEqual(main.predict_batch([]), [])

    def test_one_bad_request_raises_for_all(self):
        with self.assertRaisesRegex(ValueError, "expected 64 pixels"):
            main.predict_batch([ZERO, "1,2,3", ZERO])


class Fork(unittest.TestCase):
    def test_a_fork_of_the_loaded_model_gives_the_same_answers(self):
        requests = pictures(200)
        expected = main.predict_batch(requests)
        for _ in range(5):
            child = os.fork()
            if child == 0:
                status = 2
                try:
                    signal.alarm(20)  # a lost thread shows as a hang
                    status = 0 if main.predict_batch(requests) == expected else 1
                finally:
                    os._exit(status)
            _, status = os.waitpid(child, 0)
            self.assertEqual(status, 0)


if __name__ == "__main__":
    unittest.main()
