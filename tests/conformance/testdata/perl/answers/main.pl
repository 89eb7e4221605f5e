# What every conformance case asks of a model: VERB ARGUMENT.
use strict;
use warnings;
use utf8;
use open qw(:std :utf8);
use Cwd ();

sub init {
    open my $log, '>>', $ENV{CONFORMANCE_INITS} or die $!;
    print $log "init\n";
    close $log;
    print "init was here\n";
}

my %verbs = (
    echo     => sub { "$_[0]" },
    repeat   => sub { 'ü' x $_[0] },
    fail     => sub { die "$_[0]\n" },
    number   => sub { 7 },
    say      => sub { print "$_[0]\n"; 'said' },
    complain => sub { print STDERR "$_[0]\n"; 'complained' },
    nap      => sub { select undef, undef, undef, $_[0] / 1000; 'rested' },
    exit     => sub { exit $_[0] },
    kill     => sub { kill $_[0], $$; sleep 60 },
    child    => sub { my $pid = fork // die; exec 'sleep', '300' if !$pid; "$pid" },
    leave    => sub { chdir $_[0]; 'gone' },
    where    => sub { Cwd::getcwd() },
);

sub predict {
    my ($verb, $argument) = split / /, $_[0], 2;
    return $verbs{$verb}->($argument // '');
}

1;
