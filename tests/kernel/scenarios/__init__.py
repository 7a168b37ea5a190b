"""What runs inside the guest: trial test cases, one module a theme.

No module here is named C{test_*}, so that C{trial tests} on the host leaves them alone."""
