# The calls of Perl's LWP and HTTP::Tiny that record.py records: `perl calls.pl CLIENT CALL`; without CALL a list.
use strict;
use warnings;
use utf8;
use HTTP::Request::Common qw(GET POST PUT DELETE);
use HTTP::Tiny;
use LWP::UserAgent;

my $api  = "https://api.example.org";
my $lwp  = LWP::UserAgent->new(ssl_opts => { SSL_ca_file => $ENV{SSL_CERT_FILE} });
my $tiny = HTTP::Tiny->new(verify_SSL => 1, SSL_options => { SSL_ca_file => $ENV{SSL_CERT_FILE} });
my @json = ("Content-Type" => "application/json", Content => '{"a": 1}');
my $big  = "0123456789abcdef" x (3 * 65_536);

my %calls = (
    "perl-lwp" => {
        get            => sub { $lwp->request(GET "$api/v1/items?q=a%20b") },
        post_json      => sub { $lwp->request(POST "$api/v1/items", @json) },
        post_form      => sub { $lwp->request(POST "$api/v1/items", [a => "1 2", b => "x", b => "y"]) },
        post_multipart => sub {
            my $file = [undef, "report.csv", "Content-Type" => "text/csv", Content => "a,b\n"];
            $lwp->request(POST "$api/v1/items", Content_Type => "form-data", Content => [kind => "csv", file => $file]);
        },
        put_3mb => sub { $lwp->request(PUT "$api/v1/blobs/big", Content => $big) },
        delete  => sub { $lwp->request(DELETE "$api/v1/items/7") },
    },
    "perl-http-tiny" => {
        get       => sub { $tiny->get("$api/v1/items") },
        post_json => sub { $tiny->post("$api/v1/items", { headers => { "content-type" => "application/json" }, content => '{"a": 1}' }) },
        post_form => sub { $tiny->post_form("$api/v1/items", [a => "1 2"]) },
        post_stream => sub { my @left = ("one", "two"); $tiny->post("$api/v1/items", { content => sub { shift @left } }) },
    },
);
my $chosen = $calls{ $ARGV[0] };
if (defined $ARGV[1]) { $chosen->{ $ARGV[1] }->() }
else { print join("\n", sort keys %$chosen), "\n" }
