// A product in the smallest multiplier of a Gowin GW5A that holds it, both factors signed, no registers: half
// a DSP block (12 x 12 bits), one (27 x 18) or two (27 x 36). One with a factor of less than 7 bits, and one
// that none of them holds, stays as it is.
(* techmap_celltype = "$mul" *)
module gw5a_mul (A, B, Y);
  parameter A_SIGNED = 0;
  parameter B_SIGNED = 0;
  parameter A_WIDTH = 1;
  parameter B_WIDTH = 1;
  parameter Y_WIDTH = 1;
  (* force_downto *) input [A_WIDTH-1:0] A;
  (* force_downto *) input [B_WIDTH-1:0] B;
  (* force_downto *) output [Y_WIDTH-1:0] Y;

  localparam is_signed = A_SIGNED && B_SIGNED;
  localparam swap = A_WIDTH < B_WIDTH;
  localparam wide = (swap ? B_WIDTH : A_WIDTH) + !is_signed;
  localparam narrow = (swap ? A_WIDTH : B_WIDTH) + !is_signed;
  wire signed [A_WIDTH:0] a = {is_signed && A[A_WIDTH-1], A};
  wire signed [B_WIDTH:0] b = {is_signed && B[B_WIDTH-1], B};
  wire signed [35:0] x = swap ? b : a;
  wire signed [26:0] y = swap ? a : b;

  generate
    if (narrow < 7 || narrow > 27 || wide > 36)
      wire _TECHMAP_FAIL_ = 1;
    else if (wide <= 12) begin
      wire signed [23:0] p;
      assign Y = p;
      MULT12X12 _TECHMAP_REPLACE_ (
        .A(x[11:0]), .B(y[11:0]), .CLK(2'b0), .CE(2'b0), .RESET(2'b0), .DOUT(p));
    end
    else if (narrow <= 18 && wide <= 27) begin
      wire signed [47:0] p;
      assign Y = p;
      MULTALU27X18 _TECHMAP_REPLACE_ (
        .A(x[26:0]), .B(y[17:0]), .C(48'b0), .D(26'b0), .CLK(2'b0), .CE(2'b0), .RESET(2'b0), .PSEL(1'b0),
        .PADDSUB(1'b0), .ASEL(1'b0), .CSEL(1'b0), .CASISEL(1'b0), .ACCSEL(1'b0), .ADDSUB(2'b0), .DOUT(p));
    end
    else begin
      wire signed [62:0] p;
      assign Y = p;
      MULT27X36 _TECHMAP_REPLACE_ (
        .A(y), .B(x), .D(26'b0), .CLK(2'b0), .CE(2'b0), .RESET(2'b0), .PSEL(1'b0), .PADDSUB(1'b0), .DOUT(p));
    end
  endgenerate
endmodule
