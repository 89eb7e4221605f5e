#!/usr/bin/perl
# A runner for models in Perl: the worked example of docs/bring-your-own-language.md. It keeps no journal
# and knows no predict_batch, which docs/runner-protocol.md allows, and needs nothing but Perl itself.
#
# Arguments: BUNDLE ENTRY START_METHOD CHANNELS JOURNAL_FD
use strict;
use warnings;
use POSIX qw(:sys_wait_h setpgid dup2 _exit);
use Time::HiRes qw(clock_gettime CLOCK_MONOTONIC);

use constant {
    FORK => 1, KILL => 2,
    HELLO => 16, READY => 17, INIT_FAILED => 18, FORKED => 19, EXITED => 20,
    UP => 48, RESPONSE => 49, RAISED => 50, NOT_STRING => 51,
};
my $HEADER = 24;
my $CAPABILITIES = '{"batch": false, "journal": false}';

my ($bundle, $entry, $start_method, $channels) = @ARGV;
my ($control, $report);
my %workers;    # pid => number

# Length, kind, flags, zero, id, elapsed, all little-endian; then the payload.
sub frame {
    my ($kind, $id, $elapsed, $payload) = @_;
    return pack('V C C v Q< Q<', length $payload, $kind, 0, 0, $id, $elapsed) . $payload;
}

# A FIFO takes what it has room for, so one write may not be enough.
sub send_frame {
    my ($channel, @frame) = @_;
    my $bytes = frame(@frame);
    my $done = 0;
    while ($done < length $bytes) {
        my $n = syswrite $channel, $bytes, length($bytes) - $done, $done;
        if (defined $n) { $done += $n }
        elsif (!$!{EINTR}) { _exit(0) }    # fwatchdog is gone
    }
}

# Exactly so many bytes, or undef when the channel ends before: a read may return fewer.
sub read_exactly {
    my ($channel, $size) = @_;
    my $bytes = '';
    while (length $bytes < $size) {
        my $n = sysread $channel, $bytes, $size - length $bytes, length $bytes;
        next if !defined $n && $!{EINTR};
        return undef if !$n;
    }
    return $bytes;
}

# Characters as UTF-8, with NUL escaped where it would end a part.
sub part {
    my ($text) = @_;
    utf8::encode($text) if utf8::is_utf8($text);
    $text =~ s/\0/\\0/g;
    return $text;
}

# Loads the model and runs init, or dies with what fwatchdog tells the operator.
sub load_model {
    my $file = "$bundle/$entry";
    my $done = do $file;
    die $@ if $@;
    die "$entry cannot be read: $!\n" if !defined $done && $!;
    die "$entry does not define predict\n" if !defined &main::predict;
    main::init() if defined &main::init;
}

# One answer's kind and payload. Descriptors below are the model's; a die of any kind is an answer.
sub answer {
    my ($request) = @_;
    utf8::decode($request);
    my $result = eval { my $r = main::predict($request); [$r] };
    if (!$result) {
        my $error = $@;
        my ($message) = ref $error ? ("$error") : $error =~ /\A(.*?)(?: at \S+ line \d+\.)?\n?\z/s;
        my $type = ref $error || 'die';
        return (RAISED, join "\0", part($type), part($message), part("died: $error"));
    }
    my $text = $result->[0];
    return (NOT_STRING, 'undef') if !defined $text;
    return (NOT_STRING, 'a reference to ' . ref $text) if ref $text;
    # A scalar that was never a string is a number, which the contract keeps apart.
    require B;
    my $flags = B::svref_2object(\$text)->FLAGS;
    return (NOT_STRING, 'a number') if !($flags & B::SVf_POK());
    utf8::encode($text) if utf8::is_utf8($text);
    return (RESPONSE, $text);
}

sub serve {
    my ($requests, $replies, $home) = @_;
    while (defined(my $header = read_exactly($requests, $HEADER))) {
        my ($length, undef, undef, undef, $id) = unpack 'V C C v Q<', $header;
        my $request = read_exactly($requests, $length);
        last if !defined $request;
        my $began = clock_gettime(CLOCK_MONOTONIC);
        my ($kind, $payload) = answer($request);
        my $took = int((clock_gettime(CLOCK_MONOTONIC) - $began) * 1e9) || 1;
        send_frame($replies, $kind, $id, $took, $payload);
        chdir $home;
    }
}

sub open_channel {
    my ($mode, $name) = @_;
    open my $channel, $mode, "$channels/$name" or _exit(71);    # close-on-exec: Perl sets it above 2
    binmode $channel;
    return $channel;
}

sub become_worker {
    my ($number) = @_;
    setpgid(0, 0);
    close $control;
    close $report;
    $SIG{$_} = 'DEFAULT' for qw(CHLD PIPE);
    my $requests = open_channel('<', "$number.in");
    my $replies = open_channel('>', "$number.out");
    for (['stdout', 1], ['stderr', 2]) {
        my $log = open_channel('>', "$number.$_->[0]");
        dup2(fileno $log, $_->[1]);
    }
    $| = 1;
    if ($start_method eq 'spawn' && !eval { load_model(); 1 }) {
        send_frame($replies, INIT_FAILED, $number, 0, part("died: $@"));
        _exit(1);
    }
    send_frame($replies, UP, $number, $$, $CAPABILITIES);
    serve($requests, $replies, $bundle);
    _exit(0);
}

# What a worker leaves of its group is killed before it is reaped, while its number cannot mean another.
sub reap {
    for my $pid (keys %workers) {
        my $exited = do {
            open my $stat, '<', "/proc/$pid/stat" or next;
            local $/;
            <$stat> =~ /\) Z /;
        };
        next if !$exited;
        kill 'KILL', -$pid;
        waitpid $pid, 0;
        my $status = $?;
        my $code = $status & 127 ? 128 + ($status & 127) : $status >> 8;
        send_frame($report, EXITED, delete $workers{$pid}, $code, '');
    }
}

sub leave_with_group {
    kill 'KILL', map { -$_ } keys %workers;
    kill 'KILL', 0;
}

# The kernel ends this process with fwatchdog (PR_SET_PDEATHSIG), which is for the time of init: after it,
# the channel tells, and there are workers to end first.
sub outlive_the_signal {
    syscall 157, 1, 0, 0, 0, 0 if `uname -m` =~ /x86_64/;
}

$control = open_channel('<', 'control.in');
$report = open_channel('>', 'control.out');
chdir $bundle or die "$bundle: $!";
$| = 1;
send_frame($report, HELLO, 0, 0, qq({"wire": 1, "runtime": "perl $^V"}));
if ($start_method eq 'fork' && !eval { load_model(); 1 }) {
    send_frame($report, INIT_FAILED, 0, 0, part("died: $@"));
    leave_with_group();
}
outlive_the_signal();
$SIG{PIPE} = \&leave_with_group;    # that nobody reads reports any more tells it as well
send_frame($report, READY, 0, 0, $CAPABILITIES);

# A child's end interrupts select, so that neither it nor an order waits for the other.
$SIG{CHLD} = sub { };
while (1) {
    reap();
    my $ready = '';
    vec($ready, fileno $control, 1) = 1;
    # The limit is for the signal that comes between reap and select.
    next if select($ready, undef, undef, 0.1) <= 0;
    my $order = read_exactly($control, $HEADER);
    leave_with_group() if !defined $order;    # fwatchdog is gone: nothing may outlive it
    my (undef, $kind, undef, undef, $number) = unpack 'V C C v Q<', $order;
    if ($kind == FORK) {
        my $pid = fork;
        become_worker($number) if defined $pid && $pid == 0;
        if (!defined $pid) {
            send_frame($report, EXITED, $number, 70, '');
            next;
        }
        setpgid($pid, $pid);    # the worker does it too: neither waits for the other
        $workers{$pid} = $number;
        send_frame($report, FORKED, $number, $pid, '');
    } elsif ($kind == KILL) {
        kill 'KILL', -$_ for grep { $workers{$_} == $number } keys %workers;
    }
}
