use strict;
use warnings;
use utf8;

sub init { die "the coefficients are missing: ☃\n" }

sub predict { return $_[0] }

1;
